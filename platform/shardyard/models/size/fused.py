"""Attention by a fused kernel on the meta device, where torch otherwise computes it by its parts.

What a forward pass keeps for the backward pass depends on it: a fused kernel keeps queries, keys, values, its output
and one number a row of scores, and never the matrix of scores.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class FusedAttention(TorchFunctionMode):
    """Replaces `scaled_dot_product_attention` while it is entered, and counts the FLOPs of its two products."""

    def __init__(self, select: Callable[[Tensor], None]) -> None:
        """`select` is called with each output."""
        super().__init__()
        self.flops, self._select = 0, select

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return self._attention(*args, **(kwargs or {}))

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
        """Shapes: query [..., H, T, K], key [..., G, S, K], value [..., G, S, V]; G divides H."""
        pairs = query.shape[:-1].numel() * key.size(-2)
        self.flops += 2 * pairs * (key.size(-1) + value.size(-1))
        out: Tensor = _Fused.apply(query, key, value)  # type: ignore[no-untyped-call]
        self._select(out)
        return out


class _Fused(torch.autograd.Function):
    """The shapes of a fused kernel, and what it keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            *batch, heads, length, _ = query.shape
            # As kernels lay it out: the heads of a token lie together, so that the next layer needs no copy.
            out = query.new_empty((*batch, length, heads, value.size(-1))).transpose(-3, -2)
            sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, out, sums)
        return out
