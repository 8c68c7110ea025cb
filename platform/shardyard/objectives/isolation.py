"""Isolation of the documents of a row in attention, for implementations that ignore position ids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shardyard.models.quirks import attention_of


def document_bounds(model: Any, position_ids: Tensor) -> dict[str, Tensor | int]:
    """Model arguments with which FlashAttention isolates documents; empty for other implementations.

    For `sdpa` and `eager`, transformers derives a mask from position ids that restart. FlashAttention needs document
    bounds instead, which transformers derives only for a batch of one row: in larger batches, documents would attend to
    each other.

    Args:
        model: a transformers model, or DeepSpeed's engine around one.
        position_ids: [B, T]; a new document begins where they do not increase by one.
    """
    if not attention_of(model).startswith("flash_attention"):
        return {}
    flat = position_ids.flatten()  # [B·T]
    starts = (flat[1:] != flat[:-1] + 1).nonzero().flatten() + 1
    ends = torch.tensor([0, flat.numel()], device=flat.device)
    bounds = torch.cat([ends[:1], starts, ends[1:]]).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}
