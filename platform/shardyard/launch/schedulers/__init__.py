"""Schedulers that carry out jobs, a folder each."""
