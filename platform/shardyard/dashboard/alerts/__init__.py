"""Alerts of runs and their delivery."""
