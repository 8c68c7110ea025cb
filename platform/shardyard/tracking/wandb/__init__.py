"""Weights & Biases: a mirror of the run folder, uploads, and imports. Only this package imports wandb."""
