"""Correlations of predicted numbers with labels.

N: rows
"""

from __future__ import annotations

import torch
from torch import Tensor


def pearson(found: Tensor, labels: Tensor) -> float:
    """Linear correlation of two vectors [N], from -1 to 1; 0 where either is constant, for which it is not defined."""
    a, b = (values.double() - values.double().mean() for values in (found, labels))
    spread = a.norm() * b.norm()
    return float(a @ b / spread) if spread > 0 else 0.0


def spearman(found: Tensor, labels: Tensor) -> float:
    """Pearson's correlation of ranks, where equal numbers share the mean of their ranks (Spearman 1904)."""
    return pearson(_ranks(found), _ranks(labels))


def _ranks(values: Tensor) -> Tensor:
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    means: Tensor = last - (counts - 1) / 2
    return means[inverse]
