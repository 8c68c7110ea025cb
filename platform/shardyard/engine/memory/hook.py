"""Measures what a step allocates, by purpose, in a run that asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import deepspeed
from torch import nn

from shardyard.engine.hooks.base import Hook
from shardyard.engine.memory.allocations import Allocations
from shardyard.engine.memory.breakdown import Allocated, Breakdown
from shardyard.engine.mesh import Mesh
from shardyard.tracking.metrics.record import StepRecord

# The first step creates the optimizer's states; the second begins to prefetch what the first has recorded; the third
# is measured, and the peak of the fourth, which is like it, is broken down.
MEASURED_STEPS = 4
# The share of the third step's peak from which on the fourth is broken down, if experts get other tokens.
_NEARLY = 0.97


class AllocationHook(Hook):
    """After the last of its steps, gives what each rank has allocated at its peak to a function, on rank 0."""

    name: ClassVar[str] = "allocations"
    reads_metrics = False

    def __init__(
        self,
        engine: deepspeed.DeepSpeedEngine,
        allocations: Allocations,
        mesh: Mesh,
        report: Callable[[list[Allocated]], object],
        frozen: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self._frozen = frozen
        self._engine, self._allocations, self._mesh, self._report = engine, allocations, mesh, report
        self._found: Allocated | None = None

    def on_step(self, record: StepRecord) -> None:
        """Called after a step, before evaluations and checkpoints."""
        if record.step == MEASURED_STEPS - 1:
            breakdown = Breakdown(self._engine, self._allocations, self._frozen)

            def keep() -> None:
                self._found = breakdown.now()

            self._allocations.at_peak(int(self._allocations.peak * _NEARLY), keep)
        if record.step == MEASURED_STEPS:
            self._allocations.at_peak(0, lambda: None)
            found = self._mesh.world.gather(self._found)
            if self._mesh.is_first:
                self._report([one for one in found if one is not None])
        self._allocations.restart()
