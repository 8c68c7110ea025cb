"""Whose memory it is: parameters, gradients, optimizer states and buffers of an engine, and what a step adds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import deepspeed
from torch import Tensor, nn

from shardyard.engine.memory.allocations import Allocations

# Where DeepSpeed's optimizers keep sums of gradients, and the master copy of the weights, by stage.
_GRADIENTS = ("grad_partitions_flat_buffer", "averaged_gradients", "all_grad_tensors", "fp32_groups_gradients_flat")
_MASTERS = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")


@dataclass(frozen=True)
class Allocated:
    """Bytes of one rank at the peak of a step.

    parameters_bytes: with what ZeRO-3 has gathered. gradients_bytes: sums of gradients, sharded or not.
    buffers_bytes: kept between steps, and gradients that are not yet reduced. activations_bytes: everything else that a
    step allocates, logits and temporary results included.
    """

    parameters_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    buffers_bytes: int
    activations_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of them."""
        return (
            self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.buffers_bytes
            + self.activations_bytes
        )


class Breakdown:
    """Assigns what is alive to its purposes. Create it between two steps, when no activation is alive.

    frozen: a model that is never trained, such as a teacher.
    """

    def __init__(
        self, engine: deepspeed.DeepSpeedEngine, allocations: Allocations, frozen: nn.Module | None = None
    ) -> None:
        self._engine, self._allocations, self._frozen = engine, allocations, frozen
        seen: set[int] = set()
        for tensors in (self._parameters(), _gradients(engine), _optimizer(engine)):
            allocations.bytes_of(tensors, seen)
        self._buffers = allocations.keys_outside(seen)

    def now(self) -> Allocated:
        """The bytes by purpose at this moment."""
        seen: set[int] = set()
        parts = [
            self._allocations.bytes_of(tensors, seen)
            for tensors in (self._parameters(), _gradients(self._engine), _optimizer(self._engine))
        ]
        kept = self._allocations.bytes_in(self._buffers - seen)
        seen |= self._buffers
        gathered = self._allocations.gathered_outside(seen)
        own = self._allocations.bytes_of(_own_gradients(self._engine), seen)
        return Allocated(
            parameters_bytes=parts[0] + gathered,
            gradients_bytes=parts[1],
            optimizer_bytes=parts[2],
            buffers_bytes=kept + own,
            activations_bytes=self._allocations.bytes_in(self._allocations.keys_outside(seen)),
        )

    def _parameters(self) -> Iterator[Tensor]:
        yield from _parameters(self._engine.module)
        if self._frozen is not None:
            yield from _parameters(self._frozen)


def _parameters(module: nn.Module) -> Iterator[Tensor]:
    """The weights as a forward pass reads them: whole, or this rank's part and what is gathered."""
    for parameter in module.parameters():
        yield parameter.data
        part = getattr(parameter, "ds_tensor", None)
        if part is not None:
            yield part.data


def _gradients(engine: deepspeed.DeepSpeedEngine) -> Iterator[Tensor]:
    """Sums of gradients over micro-batches; without ZeRO, the gradients themselves."""
    yield from _tensors([getattr(engine.optimizer, name, None) for name in _GRADIENTS])
    for parameter in engine.module.parameters():
        yield from _tensors(getattr(parameter, "grad_accum", None))
        if parameter.grad is not None and not engine.zero_optimization():
            yield parameter.grad


def _own_gradients(engine: deepspeed.DeepSpeedEngine) -> Iterator[Tensor]:
    """Gradients of the last backward pass that are not yet reduced."""
    for parameter in engine.module.parameters():
        if parameter.grad is not None:
            yield parameter.grad


def _optimizer(engine: deepspeed.DeepSpeedEngine) -> Iterator[Tensor]:
    """The master copy of the weights, and the states of the optimizer."""
    yield from _tensors([getattr(engine.optimizer, name, None) for name in _MASTERS])
    inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
    yield from _tensors(list(getattr(inner, "state", {}).values()))


def _tensors(nested: object) -> Iterator[Tensor]:
    """The tensors of lists and dictionaries."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from _tensors(value)
    elif isinstance(nested, list | tuple):
        for value in nested:
            yield from _tensors(value)
