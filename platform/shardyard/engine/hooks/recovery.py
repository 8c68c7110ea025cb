"""The first step after a failure, and how long each phase of the recovery took."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from shardyard.engine.hooks.base import EventLog, Hook
from shardyard.engine.job import Restart
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Recovered

# What is reached at each time → the name of the phase that ends there.
PHASES = {
    "failed": "noticed",
    "ended": "ended",
    "waited": "waited",
    "placed": "processes",
    "imported": "imports",
    "joined": "process_group",
    "built": "model",
    "restored": "checkpoint",
    "stepped": "first_step",
}


class RecoveryHook(Hook):
    """Logs an event after the first step of an attempt that follows a failure.

    Made once the model is built. `restored`: when the checkpoint had been read, in seconds since 1970.
    """

    name = "recovery"
    reads_metrics = False
    may_lag = True

    def __init__(
        self,
        restart: Restart,
        restored: Callable[[], float],
        events: EventLog,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        self._clock = clock
        self._times = {**restart.times, "built": clock()}
        self._spares, self._restored, self._events = restart.spares, restored, events
        self._done = False

    def due(self, step: int, last: int) -> bool:
        """Only after the first step."""
        return not self._done

    def on_step(self, record: StepRecord) -> None:
        """Log the event."""
        self._done = True
        times = {**self._times, "restored": self._restored(), "stepped": self._clock()}
        phases = phases_of(times)
        seconds = times["stepped"] - times.get("last_step", times["stepped"])
        self._events.event(Recovered(step=record.step, seconds=seconds, phases=phases, spares=self._spares))


def phases_of(times: Mapping[str, float]) -> dict[str, float]:
    """Name of each phase → its seconds, from when its end and the end of the one before were reached."""
    found: dict[str, float] = {}
    before = times.get("last_step")
    for reached, name in PHASES.items():
        moment = times.get(reached)
        if moment is None:
            continue
        if before is not None:
            # The clocks of two hosts may differ.
            found[name] = max(0.0, moment - before)
        before = moment
    return found
