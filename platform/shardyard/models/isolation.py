"""The inputs of a model with which the documents of a row do not see each other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from shardyard.models.document_attention import NAME
from shardyard.models.quirks import attention_of, first_position
from shardyard.recipe.isolation import Isolation

Inputs = dict[str, Tensor | dict[str, Tensor] | int]


def document_inputs(model: Any, position_ids: Tensor, isolation: Isolation = "positions") -> Inputs:
    """Position ids, and whatever else keeps documents apart, as keyword arguments of a causal model.

    `positions`: transformers derives a mask from position ids that restart. FlashAttention needs document bounds
    instead, which transformers derives only for a batch of one row: in larger batches, documents would attend to each
    other. `mask`: an additive mask, for families that take one but derive none. `rows`: nothing, because a row has one
    document.

    Args:
        model: a transformers model, or DeepSpeed's engine around one.
        position_ids: [B, T], from 0 on; a new document begins where they do not increase by one.
        isolation: what isolates documents in this family (`data.isolation`).
    """
    first = first_position(model)
    inputs: Inputs = {"position_ids": position_ids + first if first else position_ids}
    if isolation == "mask":
        inputs["attention_mask"] = _masks(model, position_ids)
    elif attention_of(model).startswith(("flash_attention", NAME)):
        inputs |= _document_bounds(position_ids)
    return inputs


def _masks(model: Any, position_ids: Tensor) -> Tensor | dict[str, Tensor]:
    """The mask of all layers; by kind of layer for a model whose layers look back over different distances."""
    dtype, config = _dtype(model), getattr(getattr(model, "module", model), "config", None)
    text = config.get_text_config(decoder=True) if isinstance(config, PreTrainedConfig) else None
    kinds, window = set(getattr(text, "layer_types", None) or ()), getattr(text, "sliding_window", None)
    if window is None or "sliding_attention" not in kinds:
        return document_mask(position_ids, dtype)
    windows = {"full_attention": None, "sliding_attention": window}
    return {kind: document_mask(position_ids, dtype, window) for kind, window in windows.items()}


def document_mask(position_ids: Tensor, dtype: torch.dtype, window: int | None = None) -> Tensor:
    """0 where a token sees another one, the most negative number elsewhere: [B, 1, T, T].

    Args:
        position_ids: [B, T], as in `document_inputs`.
        window: number of tokens that a token sees, itself included; None for all before it.
    """
    begins = position_ids.diff(prepend=position_ids[:, :1] - 1) != 1  # [B, T]
    document = begins.cumsum(-1)
    same = document[:, :, None] == document[:, None, :]  # [B, T, T]
    seen = same.tril() if window is None else same.tril().triu(1 - window)
    seen = seen[:, None]
    mask = torch.zeros(seen.shape, dtype=dtype, device=position_ids.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)


def _document_bounds(position_ids: Tensor) -> Inputs:
    flat = position_ids.flatten()  # [B·T]
    starts = (flat[1:] != flat[:-1] + 1).nonzero().flatten() + 1
    ends = torch.tensor([0, flat.numel()], device=flat.device)
    bounds = torch.cat([ends[:1], starts, ends[1:]]).to(torch.int32)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def _dtype(model: Any) -> torch.dtype:
    """The number format in which a model computes; the first weights are those of the embedding."""
    dtype: torch.dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return dtype
