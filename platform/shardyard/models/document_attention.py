"""Attention within the documents of packed rows, without a mask: `model.attention: varlen`.

On GPUs in 16 bits by torch's `varlen_attn`, FlashAttention for documents of any length; elsewhere document by document.
Rows that are not packed have the mask that transformers would give them.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import flash_attention_mask

from shardyard.errors import ModelError

NAME = "varlen"
# What some families compute between scores and probabilities, which no fused kernel here does.
_REFUSED = ("softcap", "s_aux", "position_bias")


class _Options(TypedDict):
    """Arguments of torch's attention that are the same for all documents."""

    dropout_p: float
    scale: float | None
    enable_gqa: bool


def register() -> None:
    """Make the implementation known to transformers; a mask of it is that of padding alone, [B, T]."""
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, flash_attention_mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """The output of attention, [B, T, H, V]; `query` is [B, H, T, K], `key` [B, G, S, K], `value` [B, G, S, V].

    Args:
        attention_mask: of padding, [B, S], or a complete one, [B, 1, T, S].
        cu_seq_lens_q: where documents begin in the flattened rows, and their end.

    Raises:
        ModelError: the family changes scores in a way that this does not compute.
    """
    if refused := [name for name in _REFUSED if others.get(name) is not None]:
        raise ModelError(f"model.attention: varlen does not compute this family's {', '.join(refused)}; leave it out.")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    options: _Options = {"dropout_p": dropout, "scale": scaling, "enable_gqa": key.shape[1] != query.shape[1]}
    if cu_seq_lens_q is None or attention_mask is not None or query.shape[2] != key.shape[2]:
        mask = _mask(query, key, attention_mask, causal, sliding_window)
        plain = causal and mask is None and query.shape[2] > 1
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=plain, **options)
        return found.transpose(1, 2).contiguous(), None
    rows, _, length, _ = query.shape
    flat = tuple(one.transpose(1, 2).flatten(0, 1) for one in (query, key, value))  # [B·T, H or G, K or V]
    if query.is_cuda and query.dtype in (torch.bfloat16, torch.float16) and not dropout:
        back = -1 if sliding_window is None else sliding_window - 1
        out = varlen_attn(
            flat[0],
            flat[1],
            flat[2],
            cu_seq_lens_q,
            cu_seq_lens_q,
            max_length_q or length,
            max_length_q or length,
            scale=scaling,
            window_size=(back, 0 if causal else back),
            enable_gqa=options["enable_gqa"],
        )
        assert isinstance(out, Tensor), "no auxiliary outputs were asked for"
    else:
        out = _by_document(flat, cu_seq_lens_q.tolist(), causal, sliding_window, options)
    return out.reshape(rows, length, *out.shape[1:]), None


def _by_document(
    flat: tuple[Tensor, ...], bounds: list[int], causal: bool, window: int | None, options: _Options
) -> Tensor:
    """Attention of each document on its own: [B·T, H, V]."""
    found = []
    for first, last in pairwise(bounds):
        query, key, value = (one[first:last].transpose(0, 1)[None] for one in flat)  # [1, H or G, t, …]
        mask = _mask(query, key, None, causal, window)
        plain = causal and mask is None
        out = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=plain, **options)
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)


def _mask(query: Tensor, key: Tensor, given: Tensor | None, causal: bool, window: int | None) -> Tensor | None:
    """The mask of whole rows, [1 or B, 1, T, S]; None where `is_causal` says it all."""
    if given is not None and given.dim() == 4:
        return given
    length, seen = query.shape[2], key.shape[2]
    narrow = window is not None and window < seen
    shifted = causal and length != seen and length > 1
    if given is None and not narrow and not shifted:
        return None
    at = torch.arange(seen - length, seen, device=query.device)[:, None]
    other = torch.arange(seen, device=query.device)[None]
    mask = torch.ones(length, seen, dtype=torch.bool, device=query.device)
    if causal:
        mask &= other <= at
    if narrow:
        assert window is not None
        mask &= (at - other).abs() < window
    found = mask[None, None]
    return found if given is None else found & given[:, None, None, -seen:].bool()


register()
