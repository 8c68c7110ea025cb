"""Running statistics of batch normalisation: averaged over ranks and kept in fp32.

Batch normalisation (Ioffe and Szegedy 2015) divides by the statistics of the rows of one forward pass: one micro-batch
of one rank. Therefore, here and nowhere else, the number of ranks and the size of a micro-batch affect the trained
model. Running statistics, which evaluation uses, are averaged over the ranks after each step, so that they are equal
on all ranks and every checkpoint holds the complete state.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from shardyard.engine.mesh import Axis


class RunningStatistics:
    """The running means and variances of a model; empty if it has none."""

    def __init__(self, model: nn.Module, data: Axis) -> None:
        self._data = data
        self._layers = list(_tracked(model))
        self._kept: list[Tensor] = []

    def remember(self) -> None:
        """Keep a copy."""
        self._kept = [buffer.clone() for buffer in self.tensors()]

    def put_back(self) -> None:
        """Set what was kept."""
        for buffer, kept in zip(self.tensors(), self._kept, strict=True):
            buffer.copy_(kept)

    def average(self) -> None:
        """Replace them with their mean over the data-parallel ranks, in one collective. All ranks call this."""
        buffers = self._buffers()
        if not buffers or self._data.size == 1:
            return
        flat = torch.cat([buffer.flatten() for buffer in buffers])
        self._data.sum(flat)
        flat /= self._data.size
        means = torch.split(flat, [buffer.numel() for buffer in buffers])
        for buffer, mean in zip(buffers, means, strict=True):
            buffer.copy_(mean.view_as(buffer))

    def _buffers(self) -> list[Tensor]:
        # Looked up each time, because loading a checkpoint may replace the tensors.
        return [getattr(layer, name) for layer in self._layers for name in ("running_mean", "running_var")]

    def tensors(self) -> list[Tensor]:
        """All of them, with the numbers of batches that they are of."""
        counts = [layer.num_batches_tracked for layer in self._layers if layer.num_batches_tracked is not None]
        return [*self._buffers(), *counts]


def normalise_in_fp32(model: nn.Module) -> None:
    """Make batch normalisation accept 16-bit inputs and weights, and keep its statistics in fp32.

    In bf16 a running mean changes in steps of about a hundredth of its value, and not at all if the momentum is small.
    Kernels accept 16-bit inputs with fp32 statistics if the weights are in fp32 as well, so the weights are widened in
    the forward pass.
    """
    for layer in _tracked(model):
        layer.running_mean, layer.running_var = layer.running_mean.float(), layer.running_var.float()
        layer.forward = MethodType(_forward, layer)


def _tracked(model: nn.Module) -> Iterator[Any]:
    """Batch normalisation layers with running statistics."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            yield layer


def _forward(layer: Any, values: Tensor) -> Tensor:
    """Like torch's own forward, with weights in fp32."""
    momentum = layer.momentum
    if layer.training and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        momentum = momentum if momentum is not None else 1.0 / float(layer.num_batches_tracked)
    return functional.batch_norm(
        values,
        layer.running_mean,
        layer.running_var,
        layer.weight.float() if layer.weight is not None else None,
        layer.bias.float() if layer.bias is not None else None,
        layer.training,
        momentum or 0.0,
        layer.eps,
    )
