"""The progress of a run, from its records and events."""

from __future__ import annotations

from collections import deque

from shardyard.launch.describe import describe
from shardyard.tracking.metrics import record
from shardyard.tracking.run.events import (
    Attempt,
    AttemptFailed,
    EarlyStop,
    Evaluated,
    Event,
    Finished,
    Length,
    SourcesExhausted,
)
from shardyard.units import format_seconds

PACE_RECORDS = 30
LOSSES_KEPT = 2000


class Progress:
    """The newest step, metrics, evaluation and event of a run, and its pace. `total_steps` is the last step."""

    def __init__(self, run_id: str, total_steps: int, resumed_step: int = 0) -> None:
        self.run_id = run_id
        self.total_steps = total_steps
        self.step = resumed_step
        self.metrics: dict[str, float] = {}
        self.eval_loss: float | None = None
        self.losses: deque[float] = deque(maxlen=LOSSES_KEPT)
        self.attempt = 1
        self.world_size: int | None = None
        self.last_event = ""
        self.failed = False
        self.ended = False
        self._pace: deque[tuple[int, float]] = deque(maxlen=PACE_RECORDS)

    def add_metrics(self, line: dict[str, float]) -> None:
        """Add a line of metrics.jsonl."""
        step = int(line.get("step", self.step))
        if step < self.step:  # a restart went back to a checkpoint
            self._pace.clear()
        self.step, self.failed = step, False
        numbers = {name: float(value) for name, value in line.items() if isinstance(value, int | float)}
        self.metrics.update(numbers)
        if (eval_loss := record.newest_eval_loss(line)) is not None:
            self.eval_loss = eval_loss
        if record.TRAIN_LOSS in numbers:
            self.losses.append(numbers[record.TRAIN_LOSS])
            self._pace.append((step, numbers.get("time", 0.0)))

    def add_event(self, event: Event) -> None:
        """Add an event."""
        if isinstance(event, Attempt):
            self.attempt = event.number
            self.world_size = event.world_size if event.world_size is not None else self.world_size
            self.failed = self.ended = False
            self._pace.clear()  # the time between two attempts is not step time
        elif isinstance(event, Length):
            self.total_steps = event.steps
        elif isinstance(event, Evaluated) and event.loss is not None:
            self.eval_loss = event.loss
        self.failed = self.failed or isinstance(event, AttemptFailed)
        self.ended = self.ended or isinstance(event, Finished | EarlyStop | SourcesExhausted)
        self.last_event = describe(event) or self.last_event

    def seconds_left(self) -> float | None:
        """Time to the last step at the pace of the newest records, including pauses; None before the pace is known."""
        pace = list(self._pace)  # another thread may append to it
        if self.ended or self.failed or len(pace) < 2:
            return None
        (first_step, first), (last_step, last) = pace[0], pace[-1]
        if last_step <= first_step or last <= first:
            return None
        return max(0, self.total_steps - self.step) * (last - first) / (last_step - first_step)


def rounded_seconds(value: float | None) -> str:
    """A time rounded to seconds: `12 s`, `3m05s`; "" if unknown."""
    return "" if value is None else f"{round(value)} s" if value < 59.5 else format_seconds(value)
