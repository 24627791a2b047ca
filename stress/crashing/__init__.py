"""The trials of stress/crash.py: what a job's files may look like after anything that can happen to them."""
