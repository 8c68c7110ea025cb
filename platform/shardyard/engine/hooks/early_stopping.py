"""Ending a run when a validation metric no longer improves."""

from __future__ import annotations

import math
from typing import TypedDict, cast

from shardyard.engine.hooks.base import EventLog, Hook, HookState
from shardyard.recipe.schema import EarlyStopping
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import EarlyStop


class _State(TypedDict):
    best: float | None
    best_step: int
    without: int


class EarlyStoppingHook(Hook):
    """Watches a metric; `stop` becomes true after `patience` evaluations without improvement."""

    name = "early_stopping"
    reads_metrics = False

    def __init__(
        self, settings: EarlyStopping, events: EventLog, *, every: int = 1, larger_is_better: bool = False
    ) -> None:
        super().__init__(every)
        self._settings, self._events = settings, events
        self._sign = -1.0 if larger_is_better else 1.0
        self._best = math.inf
        self._best_step = 0
        self._without = 0

    @property
    def stop(self) -> bool:
        """Whether patience has run out."""
        return self._without >= self._settings.patience

    def on_step(self, record: StepRecord) -> None:
        """Compare this evaluation with the best so far."""
        value = self._sign * record.metrics[self._settings.metric]
        if value < self._best - self._settings.min_delta:
            self._best, self._best_step, self._without = value, record.step, 0
            return
        self._without += 1
        if self.stop:
            self._events.event(
                EarlyStop(
                    step=record.step,
                    metric=self._settings.metric,
                    best=self._sign * self._best,
                    best_step=self._best_step,
                )
            )

    def state_dict(self) -> HookState:
        """The best value and the patience; no best value yet is None, because JSON has no infinity."""
        best = None if math.isinf(self._best) else self._best
        return {"best": best, "best_step": self._best_step, "without": self._without}

    def load_state_dict(self, state: HookState) -> None:
        """Continue with the best value and the patience of the checkpoint."""
        kept = cast(_State, state)
        self._best = math.inf if kept["best"] is None else kept["best"]
        self._best_step, self._without = kept["best_step"], kept["without"]
