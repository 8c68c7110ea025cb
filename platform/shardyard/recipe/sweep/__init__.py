"""Sweeps: their schema, how they are loaded and checked, and the trials that follow."""
