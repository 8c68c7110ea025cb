"""Checkpoints, written atomically, and the weights in them."""
