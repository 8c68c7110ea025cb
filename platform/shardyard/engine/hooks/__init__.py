"""What happens every N steps: evaluation, samples, checkpoints, early stopping."""
