"""Weights & Biases: a mirror of the run folder, uploads, and imports. The room of wandb."""
