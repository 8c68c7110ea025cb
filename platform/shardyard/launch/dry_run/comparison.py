"""The memory that a plan expects of a rank, beside what ranks allocated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardyard.engine.memory.breakdown import Allocated
from shardyard.planning.memory import Memory


@dataclass(frozen=True)
class Compared:
    """Bytes of one part: planned, and allocated by the rank with the highest peak."""

    part: str
    planned_bytes: int
    allocated_bytes: int

    @property
    def ratio(self) -> float | None:
        """Planned over allocated; None if nothing was allocated."""
        return self.planned_bytes / self.allocated_bytes if self.allocated_bytes else None


def compared(memory: Memory, ranks: Sequence[Allocated]) -> list[Compared]:
    """Part by part, and in total as the last one."""
    most = max(ranks, key=lambda one: one.total_bytes)
    planned = memory.activations_bytes + memory.logits_bytes
    return [
        Compared("parameters", memory.parameters_bytes, most.parameters_bytes),
        Compared("gradients", memory.gradients_bytes, most.gradients_bytes),
        Compared("optimizer", memory.optimizer_bytes, most.optimizer_bytes),
        Compared("activations and logits", planned, most.activations_bytes),
        Compared("buffers", memory.buffers_bytes, most.buffers_bytes),
        Compared("all", memory.device_bytes, most.total_bytes),
    ]
