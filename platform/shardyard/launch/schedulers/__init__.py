"""Schedulers, each in its own folder."""
