"""Helpers shared by tests: tiny recipes and corpora, and processes that act as ranks."""
