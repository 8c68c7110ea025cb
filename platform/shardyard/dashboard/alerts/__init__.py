"""Alerts of runs, and their receivers."""
