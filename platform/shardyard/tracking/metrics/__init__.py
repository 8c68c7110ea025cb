"""Metrics: their names, meters, the machine's figures, and the tracker that writes them."""
