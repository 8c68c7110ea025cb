"""Carrying out a run: preparation, the drive to its end, and recovery."""
