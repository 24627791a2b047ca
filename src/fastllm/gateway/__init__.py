"""The gateway: one engine behind an HTTP server, with keys, limits, budgets and a record of what was used."""
