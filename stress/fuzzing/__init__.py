"""Inputs that nobody should send: what stress/fuzz.py and the short form of it among the tests share."""
