"""Metrics: their names, meters, machine utilisation, and the tracker that writes them."""
