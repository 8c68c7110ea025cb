"""Faults of every kind, put into real runs, and what becomes of them: `make chaos`."""
