"""Alerts of runs, and where they are sent."""
