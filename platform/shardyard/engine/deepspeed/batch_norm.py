"""Running statistics of batch normalisation: averaged over ranks and kept in fp32.

Batch normalisation (Ioffe and Szegedy 2015) divides by the statistics of the rows that go through it together: those of
one micro-batch of one rank. The number of ranks and the size of a micro-batch are therefore part of what is trained,
here and nowhere else. Running statistics, which evaluation uses, are averaged over the ranks after each step, so that
they are the same everywhere and a checkpoint of any step holds all there is.
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
    """The running means and variances of a model; nothing where it has none."""

    def __init__(self, model: nn.Module, data: Axis) -> None:
        self._data = data
        self._layers = list(_tracked(model))

    def average(self) -> None:
        """Replace them by their mean over the data-parallel ranks, in one collective. All ranks call this."""
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
        # Asked for each time, because loading a checkpoint may put other tensors in their place.
        return [getattr(layer, name) for layer in self._layers for name in ("running_mean", "running_var")]


def normalise_in_fp32(model: nn.Module) -> None:
    """Let batch normalisation take inputs and weights of 16 bits, and keep its statistics in fp32.

    In bf16 a running mean moves by steps of a hundredth of itself, and not at all where the momentum is small. Kernels
    take inputs of 16 bits with statistics in fp32, if the weights are in fp32 too: they are widened on the way.
    """
    for layer in _tracked(model):
        layer.running_mean, layer.running_var = layer.running_mean.float(), layer.running_var.float()
        layer.forward = MethodType(_forward, layer)


def _tracked(model: nn.Module) -> Iterator[Any]:
    """Batch normalisations that have running statistics."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            yield layer


def _forward(layer: Any, values: Tensor) -> Tensor:
    """As torch's own, with weights in fp32."""
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
