"""Causal language modelling: each token is predicted from those before it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

IGNORED = -100


def causal_lm_loss(model: nn.Module, input_ids: Tensor, labels: Tensor, position_ids: Tensor) -> Tensor:
    """Sum of the cross-entropies of all targets, in nats.

    B: rows, T: tokens in a row, V: vocabulary.

    Args:
        model: maps tokens to an output with `logits` [B, T, V].
        input_ids: [B, T].
        labels: [B, T], already shifted: `labels[:, t]` is the token after `input_ids[:, t]`; -100 is not a target.
        position_ids: [B, T]; where they start again, attention does not look back.

    Returns:
        A scalar in fp32. It is a sum, not a mean, so that a global batch weighs each of its targets alike however it is
        cut into micro-batches and ranks.
    """
    logits = model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits  # [B, T, V]
    return functional.cross_entropy(
        logits.float().view(-1, logits.size(-1)), labels.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )


def count_targets(labels: Tensor) -> int:
    """Number of targets in `labels` [B, T]."""
    return int(torch.count_nonzero(labels != IGNORED))
