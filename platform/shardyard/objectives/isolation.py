"""Keeping documents of one row apart in attention, for implementations that do not look at position ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shardyard.models.quirks import attention_of


def document_bounds(model: Any, position_ids: Tensor) -> dict[str, Tensor | int]:
    """Arguments by which FlashAttention keeps documents apart; none for other implementations, which need none.

    From position ids that start again transformers makes a mask for `sdpa` and `eager`. FlashAttention takes bounds
    instead, which transformers derives for a batch of one row only: documents of more rows would see each other.

    Args:
        model: of transformers, or what DeepSpeed made of one.
        position_ids: [B, T]; a document begins where they do not go on by one.
    """
    if not attention_of(model).startswith("flash_attention"):
        return {}
    flat = position_ids.flatten()  # [B·T]
    starts = (flat[1:] != flat[:-1] + 1).nonzero().flatten() + 1
    ends = torch.tensor([0, flat.numel()], device=flat.device)
    bounds = torch.cat([ends[:1], starts, ends[1:]]).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
