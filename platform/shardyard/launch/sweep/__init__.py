"""Sweeps: searches over trials, the folder of a sweep, fits and plots."""
