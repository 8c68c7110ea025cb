"""What is known of a run while it trains, from its records and events, and how an event reads. Draws nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from shardyard.tracking.metrics import record
from shardyard.units import format_bytes, format_seconds

PACE_RECORDS = 30
LOSSES_KEPT = 2000


class Progress:
    """The newest step, metrics, evaluation and event of a run, and its pace. `total_steps` is its last step."""

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

    def add_metrics(self, line: dict[str, Any]) -> None:
        """Take in a line of metrics.jsonl."""
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

    def add_event(self, event: dict[str, Any]) -> None:
        """Take in a line of events.jsonl."""
        kind, loss = event.get("kind"), event.get("loss")
        if kind == "attempt":
            self.attempt = int(event.get("number", self.attempt))
            self.world_size = event.get("world_size", self.world_size)
            self._pace.clear()  # the time between two attempts says nothing about the time of a step
        if kind == "length":
            self.total_steps = int(event.get("steps", self.total_steps))
        if kind == "evaluation" and isinstance(loss, int | float):
            self.eval_loss = float(loss)
        self.failed = kind == "failure" or (self.failed and kind != "attempt")
        self.ended = kind in ("finished", "early_stop") or (self.ended and kind != "attempt")
        self.last_event = describe(event) or self.last_event

    def seconds_left(self) -> float | None:
        """Time to the last step at the pace of the newest records, pauses included; None before there is a pace."""
        pace = list(self._pace)  # another thread may add to it while this one draws
        if self.ended or self.failed or len(pace) < 2:
            return None
        (first_step, first), (last_step, last) = pace[0], pace[-1]
        if last_step <= first_step or last <= first:
            return None
        return max(0, self.total_steps - self.step) * (last - first) / (last_step - first_step)


# Of an evaluation's event, what is not a metric.
_NO_METRIC = frozenset({"kind", "time", "step", "rows", "seconds", "perplexity"})
_MOST_METRICS = 6


def metrics_in_words(measured: Mapping[str, Any]) -> str:
    """`loss 0.4132, accuracy 0.8641`; tables such as the load of each expert are left to metrics.jsonl."""
    found = {name: value for name, value in measured.items() if name not in _NO_METRIC and "/" not in name}
    told = [f"{name.replace('_', ' ')} {number(value)}" for name, value in found.items() if number(value)]
    return ", ".join(told[:_MOST_METRICS])


def describe(event: dict[str, Any]) -> str:
    """An event in a few words for a person; "" for one that says nothing."""
    step = event.get("step")
    match event.get("kind"):
        case "attempt":
            return _attempt(event)
        case "checkpoint":
            return f"checkpoint at step {step}{_size_and_time(event)}"
        case "checkpoint_failed":
            return f"checkpoint at step {step} failed: {event.get('error')}"
        case "evaluation":
            return f"evaluation at step {step}: {metrics_in_words(event)}"
        case "stop_requested":
            return f"stop requested ({event.get('reason')}): writing a checkpoint"
        case "early_stop":
            best = number(event.get("best"))
            return f"stopped early at step {step}: {event.get('metric')} no longer improves on {best}"
        case "failure":
            ranks = event.get("ranks")
            where = f" on rank {', '.join(map(str, ranks))}" if isinstance(ranks, list) and ranks else ""
            return f"failed{where}: {event.get('message')}"
        case "data":
            words = {"skipped": "examples skipped", "cut": "tokens cut off", "retries": "retries"}
            told = [f"{event[name]} {word}" for name, word in words.items() if event.get(name)]
            return f"data: {', '.join(told)}" if told else ""
        case "wandb":
            # The folder of an offline run is told at the end, with the command that uploads it.
            text = str(event.get("text"))
            return "W&B offline" if text.startswith("W&B offline") else text
        case "finished":
            return f"finished at step {step}"
        case kind:
            return str(event.get("text") or event.get("status") or kind or "")


def number(value: object, style: str = ".4f") -> str:
    """A metric as text; "" for one that is not there."""
    return format(value, style) if isinstance(value, int | float) else "" if value is None else str(value)


def rounded_seconds(value: float | None) -> str:
    """A time that nobody reads to the millisecond: `12 s`, `3m05s`; "" for one that is not known."""
    return "" if value is None else f"{round(value)} s" if value < 59.5 else format_seconds(value)


def _attempt(event: dict[str, Any]) -> str:
    ranks, attempt, resumed = event.get("world_size") or 1, event.get("number", 1), event.get("resumed_step")
    size = f"on {ranks} rank{'s' if ranks != 1 else ''}"
    source = f" from step {resumed}" if resumed else ""
    return (
        f"restart: attempt {attempt} {size}{source or ' from the beginning'}"
        if attempt > 1
        else (f"training {size}{source}")
    )


def _size_and_time(event: dict[str, Any]) -> str:
    parts = []
    if isinstance(event.get("bytes"), int | float):
        parts.append(format_bytes(event["bytes"]))
    if isinstance(event.get("seconds"), int | float):
        parts.append(format_seconds(event["seconds"]))
    return f" ({', '.join(parts)})" if parts else ""
