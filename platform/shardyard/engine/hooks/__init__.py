"""Hooks that run every N steps: evaluation, samples, checkpoints, early stopping."""
