"""Optimizer states in files of a local disk: their folders, and their way into checkpoints and back."""
