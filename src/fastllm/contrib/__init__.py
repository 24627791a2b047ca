"""What FastLLM tells to others: each file needs the library of its name."""
