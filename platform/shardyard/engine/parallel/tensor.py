"""Weights and gradients of which each tensor-parallel rank has a part, and the whole of them.

P: ranks of a tensor-parallel group
"""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from shardyard.engine.mesh import Axis
from shardyard.recipe.tensor_plans import split_dimension


def joined(name: str, part: Tensor, axis: Axis) -> Tensor:
    """A weight from the parts of the P ranks of `axis`, or itself if each has all of it; all of them call this."""
    dim = split_dimension(name)
    if axis.size == 1 or dim is None:
        return part
    parts = [torch.empty_like(part, memory_format=torch.contiguous_format) for _ in range(axis.size)]
    distributed.all_gather(parts, part.contiguous(), group=axis.group)
    return torch.cat(parts, dim=dim)


def gradient_norm(model: nn.Module, axis: Axis) -> Tensor | None:
    """The norm of all gradients of a model whose weights are split along `axis`; None if there are none."""
    squares = [torch.zeros(()), torch.zeros(())]
    for parameter in model.parameters():
        if parameter.grad is not None:
            here = bool(getattr(parameter, "tensor_model_parallel", False))  # DeepSpeed's mark of a part
            squares[here] = squares[here].to(parameter.grad.device) + parameter.grad.float().square().sum()
    whole, parts = squares
    axis.sum(parts)
    return (whole + parts).sqrt()
