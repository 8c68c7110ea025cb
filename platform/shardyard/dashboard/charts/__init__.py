"""Curves for the pages: series, smoothing, downsampling."""
