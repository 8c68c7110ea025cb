"""Checkpoints that are whole or not there, and the weights in them."""
