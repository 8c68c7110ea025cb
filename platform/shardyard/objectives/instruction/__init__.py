"""Answers to instructions."""
