"""FlashAttention's functions by their formula: the arguments passed to them, and their validity, are tested."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__version__ = "2.8.3"


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
) -> Tensor:
    """q, k, v: [B, T, heads, width]."""
    assert q.dtype in (torch.float16, torch.bfloat16), "FlashAttention only supports fp16 and bf16"
    assert (window_size, softcap, alibi_slopes) == ((-1, -1), 0.0, None), "not rehearsed"
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    found = functional.scaled_dot_product_attention(
        q, k, v, dropout_p=dropout_p, is_causal=causal, scale=softmax_scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return found.transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
) -> Tensor:
    """q, k, v: [tokens of all sequences, heads, width]; `cu_seqlens` are where sequences begin, and the end."""
    from pretended import cuda

    cuda.USED["varlen"] += 1
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32, "cu_seqlens have to be int32"
    bounds = cu_seqlens_q.tolist()
    assert bounds == cu_seqlens_k.tolist(), "training attends to what it reads"
    assert (bounds[0], bounds[-1]) == (0, len(q)), "cu_seqlens begin with 0 and end with the number of tokens"
    assert max(end - start for start, end in pairwise(bounds)) <= int(max_seqlen_q), "a sequence is too long"
    options: dict[str, Any] = {"dropout_p": dropout_p, "softmax_scale": softmax_scale, "causal": causal}
    parts = [
        flash_attn_func(q[None, start:end], k[None, start:end], v[None, start:end], **options)[0]
        for start, end in pairwise(bounds)
    ]
    return torch.cat(parts)


def flash_attn_with_kvcache(*_: Any, **__: Any) -> Tensor:
    raise NotImplementedError("paged caches are not rehearsed")
