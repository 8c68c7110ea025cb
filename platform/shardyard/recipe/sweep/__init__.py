"""Sweeps: schema, loading, checks, and the resulting trials."""
