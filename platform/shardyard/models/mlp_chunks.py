"""Feed-forward blocks of some tokens at a time: for long rows, their inner activations are the largest of a layer.

The blocks work token by token, so parts of a row give the same as the whole; each part is computed again in the
backward pass (tiled MLP of Bekman et al. 2025, Arctic Long Sequence Training). Parts are of one graph, so a weight gets
its gradient once, which ZeRO's hooks need.

    B: rows, T: tokens of a row, D: width
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from shardyard.errors import ModelError


def chunk_mlps(model: nn.Module, tokens: int) -> None:
    """Make the feed-forward blocks of a model of transformers compute at most `tokens` tokens at a time.

    Raises:
        ModelError: the model has no blocks of this kind.
    """
    blocks = [module for name, module in model.named_modules() if name.endswith(".mlp") and not _routes(module)]
    if not blocks:
        raise ModelError("the layers of this model have no block `mlp` of all tokens; set model.mlp_chunk to 0.")
    for block in blocks:
        block.forward = partial(_in_chunks, block.forward, tokens)


def _routes(module: nn.Module) -> bool:
    """Whether a block sends tokens to experts, which depends on all of them."""
    return any(name.endswith(("experts", "router", "gate")) for name, _ in module.named_modules())


def _in_chunks(plain: Any, tokens: int, hidden: Tensor) -> Tensor:
    """`plain` of [B, T, D]."""
    rows, length, _ = hidden.shape
    size = max(1, tokens // rows)
    if length <= size or not torch.is_grad_enabled():
        whole: Tensor = plain(hidden)
        return whole
    # Contiguous, as whole rows are, because some layers view them.
    parts = [part.contiguous() for part in torch.split(hidden, size, dim=1)]
    return torch.cat([checkpoint(plain, part, use_reentrant=False) for part in parts], dim=1)
