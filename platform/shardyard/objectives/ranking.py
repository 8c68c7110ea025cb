"""Scores of rankings: how early the right results come.

Q: queries, K: results
"""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(similarity: Tensor, right: Tensor) -> Tensor:
    """The rank of the best right result of each query, from 1: int64 [Q].

    A wrong result that is as similar as the best right one is ranked before it, so results that are all equal rank it
    last, and so do NaN.

    Args:
        similarity: [Q, K].
        right: bool [Q, K]; each query has at least one.
    """
    assert bool(right.any(-1).all()), "a query without a right result has no rank"
    best = similarity.masked_fill(~right, -torch.inf).amax(-1, keepdim=True)
    # Not `>=`, which is false for NaN.
    before = ~(similarity < best) & ~right
    return before.sum(-1) + 1


def recall(found: Tensor, k: int) -> float:
    """Share of queries with a right result among the first k, from ranks [Q]."""
    return float((found <= k).double().mean())


def mean_reciprocal_rank(found: Tensor) -> float:
    """Mean of 1 / rank of the first right result (Voorhees 1999), from ranks [Q]."""
    return float((1 / found.double()).mean())


def ndcg(found: Tensor, k: int = 10) -> float:
    """Normalised discounted cumulative gain at k of queries with one right result, from ranks [Q].

    1 / log2(1 + rank) if the rank is at most k, else 0; Järvelin and Kekäläinen 2002, in the form with log2(1 + rank).
    """
    found = found.double()
    return float(torch.where(found <= k, 1 / torch.log2(1 + found), 0).mean())
