"""Probes: what a model does with documents, padding, dropout and gradients, tried on a narrow copy of it."""
