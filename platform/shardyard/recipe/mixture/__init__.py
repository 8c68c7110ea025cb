"""Mixtures of sources: weights by size, budgets, and stages of training, as pure arithmetic."""
