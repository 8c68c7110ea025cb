"""Helpers for tests of what leaves the house."""
