"""Gathering the rows of all data-parallel ranks on each rank, with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed import ProcessGroup


class _GatherRows(torch.autograd.Function):
    """Forward: all ranks' rows, in rank order. Backward: the gradient of the sum of all losses for this rank's rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        parts = [torch.empty_like(rows) for _ in range(group.size())]
        distributed.all_gather(parts, rows.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        summed = gradient.contiguous().clone()
        distributed.all_reduce(summed, group=ctx.group)
        return summed.chunk(ctx.group.size())[ctx.group.rank()], None


def gather_rows(rows: Tensor, group: ProcessGroup | None) -> tuple[Tensor, int]:
    """The rows of all ranks of a group, and the index of this rank's first row among them.

    The gradient is that of the sum of all ranks' losses, so every rank must call this in the same way and run a
    backward pass through it. Without a group, the rows are returned unchanged.

    Args:
        rows: [B, …], of the same shape on every rank.
        group: the data-parallel ranks; None if there is only one.

    Returns:
        [G, …] with G = ranks · B, in rank order, and rank · B.
    """
    if group is None:
        return rows, 0
    gathered: Tensor = _GatherRows.apply(rows, group)  # type: ignore[no-untyped-call]
    return gathered, group.rank() * rows.shape[0]
