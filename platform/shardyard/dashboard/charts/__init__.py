"""Curves for the pages: series, smoothing, thinning."""
