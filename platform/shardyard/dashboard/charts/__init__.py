"""Curves for the page: series, smoothing, downsampling."""
