"""Writing the step's record: one line of metrics.jsonl, if it is due or a hook added metrics to it."""

from __future__ import annotations

from shardyard.engine.hooks.base import Hook
from shardyard.tracking.metrics.machine import MachineWatch
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.metrics.tracker import Tracker


class RecordHook(Hook):
    """Runs after the hooks that measure and before those that react to recorded metrics.

    Args:
        tracker: None on all ranks but the first.
        record_every: steps between two records; a step to which a hook added metrics is always recorded.
    """

    name = "record"
    reads_metrics = False
    may_lag = True

    def __init__(self, tracker: Tracker | None, machine: MachineWatch | None, *, record_every: int, last: int) -> None:
        super().__init__()
        self._tracker, self._machine = tracker, machine
        self._record_every, self._last = record_every, last
        self._written: StepRecord | None = None

    def wants(self, step: int) -> bool:
        """Whether a step is recorded even if no hook adds metrics."""
        return step % self._record_every == 0 or step == self._last

    def on_step(self, record: StepRecord) -> None:
        """Write the record unless it has already been written."""
        if self._tracker is None or record is self._written or not (record.extended or self.wants(record.step)):
            return
        self._written = record
        if self._machine is not None:
            record.add(self._machine.take())
        self._tracker.record(record)
