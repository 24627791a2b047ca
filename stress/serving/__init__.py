"""What stress/servers.py is made of: other people's servers, and what FastLLM is asked to do with each."""
