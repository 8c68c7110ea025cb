"""The tokens that probes put through narrow copies, and the comparison of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shardyard.models.probes.narrow import FIRST_TOKEN, LAST_TOKEN, TOKENS

# Rounding in fp32 moves logits by up to 3e-6 of their spread, and the smallest leak that was seen by 9e-5.
TOLERANCE = 1e-5
# Sums in another order move logits by as much as the last digit of the embeddings does, give or take a factor.
_ROUNDINGS = 3
# Tokens of a document: more than a window of a narrow copy.
DOCUMENT = TOKENS // 2


def random_tokens(rows: int, length: int, seed: int) -> Tensor:
    """Tokens [rows, length] that are the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(FIRST_TOKEN, LAST_TOKEN, (rows, length), generator=generator)


@torch.no_grad()
def logits_of(model: Any, ids: Tensor, **inputs: Any) -> Tensor:
    """Logits [B, T, V] of a causal model for tokens [B, T]."""
    logits: Tensor = model(input_ids=ids, use_cache=False, **inputs).logits
    return logits


def tolerance_of(model: Any) -> float:
    """The largest difference of logits, as a fraction of their spread, that rounding explains in a causal model."""
    ids = random_tokens(1, DOCUMENT, seed=5)
    return max(TOLERANCE, moved_by_rounding(model, lambda: logits_of(model, ids)))


@torch.no_grad()
def moved_by_rounding(model: Any, logits: Callable[[], Tensor]) -> float:
    """How far logits move with the last digit of the embeddings, and a little more: deep models multiply rounding."""
    try:
        weight = model.get_input_embeddings().weight
    except (NotImplementedError, AttributeError):
        return 0.0
    before, kept = logits(), weight.clone()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    weight.mul_(1 + torch.finfo(weight.dtype).eps * noise)
    after = logits()
    weight.copy_(kept)
    return _ROUNDINGS * moved(after, before)


def moved(logits: Tensor, expected: Tensor) -> float:
    """Largest difference, as a fraction of the spread of the expected logits. Not a number counts as infinite."""
    difference = float((logits - expected).abs().max() / expected.std())
    return difference if difference == difference else float("inf")
