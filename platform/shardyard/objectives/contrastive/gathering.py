"""Rows of all ranks on each rank, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


class _GatherRows(torch.autograd.Function):
    """Forward: all ranks' rows, in rank order. Backward: what all ranks' losses say of the own rows, summed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        summed = gradient.contiguous().clone()
        distributed.all_reduce(summed)
        return summed.chunk(distributed.get_world_size())[distributed.get_rank()]


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """The rows of all ranks, and where the own ones begin among them.

    The gradient is that of the sum of all ranks' losses, so every rank has to call this alike and to go backward
    through it. In a single process the rows come back as they are.

    Args:
        rows: [B, …], of one shape on every rank.

    Returns:
        [G, …] with G = ranks · B, in rank order, and rank · B.
    """
    if not distributed.is_initialized() or distributed.get_world_size() == 1:
        return rows, 0
    gathered: Tensor = _GatherRows.apply(rows)  # type: ignore[no-untyped-call]
    return gathered, distributed.get_rank() * rows.shape[0]
