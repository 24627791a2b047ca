"""The gateway: the engine behind an HTTP server that speaks OpenAI's and Anthropic's API, with keys and budgets."""
