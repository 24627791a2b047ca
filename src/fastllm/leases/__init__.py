"""Leases: what processes of one machine claim of limits that they share."""
