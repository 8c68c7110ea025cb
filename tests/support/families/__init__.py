"""Tiny configurations of many families."""
