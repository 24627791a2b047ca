"""Structured answers: what they must look like, whether they do, and functions as tools. No I/O but a schema's file."""
