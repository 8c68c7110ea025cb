"""The output of a run as about 25 plain lines, for pipes and job logs."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Protocol, Self

from shardyard.launch.describe import describe, number
from shardyard.launch.run.progress import Progress, rounded_seconds
from shardyard.tracking.metrics import record
from shardyard.tracking.run.events import Attempt, CheckpointSaved, Evaluated, Event
from shardyard.units import format_count, format_seconds

PLAIN_ROWS = 20
# Terminal control characters.
_CONTROL = dict.fromkeys((7, 8, 11, 12, 13, 27))


class Drawing(Protocol):
    """Interface of a live view: a panel or plain lines."""

    def open(self) -> None:
        """Begin."""

    def close(self) -> None:
        """End; flush everything."""

    def metrics(self, line: dict[str, float]) -> None:
        """A line of metrics.jsonl, already added to `progress`."""

    def event(self, event: Event) -> None:
        """An event, already added to `progress`."""

    def message(self, text: str) -> None:
        """A line of text."""


class RunView:
    """Shows a run, as a context manager. An `Observer`; thread-safe."""

    def __init__(self, progress: Progress, drawing: Drawing) -> None:
        self.progress = progress
        self._drawing = drawing
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._drawing.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._drawing.close()

    def on_metrics(self, records: list[dict[str, float]]) -> None:
        """Show lines of metrics.jsonl, in order."""
        with self._lock:
            for line in records:
                self.progress.add_metrics(line)
                self._drawing.metrics(line)

    def on_events(self, events: list[Event]) -> None:
        """Show events, in order."""
        with self._lock:
            for event in events:
                self.progress.add_event(event)
                self._drawing.event(event)

    def message(self, text: str) -> None:
        """Show a line of text above the panel, or among the lines."""
        with self._lock:
            self._drawing.message(text)


class LinesView(RunView):
    """A run as plain lines on a stream."""

    def __init__(self, stream: IO[str], run_id: str, total_steps: int) -> None:
        progress = Progress(run_id, total_steps)
        super().__init__(progress, PlainLines(stream, progress))


@dataclass
class _Row:
    """The printed values of a step."""

    step: int
    metrics: dict[str, float] = field(default_factory=dict)
    eval_loss: float | None = None
    saved: bool = False
    seconds_left: float | None = None


class PlainLines:
    """A line for each twentieth of the run, each evaluation and checkpoint, and all other events."""

    def __init__(self, stream: IO[str], progress: Progress) -> None:
        self._stream = stream
        self._progress = progress
        self._stride = max(1, progress.total_steps // PLAIN_ROWS)
        self._columns: list[tuple[str, int]] = []
        # A step is buffered until the next one begins, because its evaluation and checkpoint belong on its line.
        self._held: _Row | None = None
        self._last_block = -1

    def open(self) -> None:
        self.message(f"{self._progress.run_id}: {self._progress.total_steps} steps")

    def close(self) -> None:
        self._flush()

    def metrics(self, line: dict[str, float]) -> None:
        step = int(line.get("step", self._progress.step))
        if self._held is None or self._held.step != step:
            self._flush()
            self._held = _Row(step)
        self._held.metrics.update(line)
        # Its duration is known now; when the line is printed, a later step may have started.
        self._held.seconds_left = self._progress.seconds_left()
        if (loss := record.newest_eval_loss(line)) is not None:
            self._held.eval_loss = loss

    def event(self, event: Event) -> None:
        if self._held is not None and isinstance(event, Evaluated) and event.step == self._held.step:
            self._held.eval_loss = event.loss
            return
        if self._held is not None and isinstance(event, CheckpointSaved) and event.step == self._held.step:
            self._held.saved = True
            return
        if text := describe(event):
            self._flush()
            self._print(f"* {text}")
            if isinstance(event, Attempt):
                self._last_block = -1  # the first step after a restart is always shown

    def message(self, text: str) -> None:
        self._flush()
        self._print(text)

    def _flush(self) -> None:
        held, self._held = self._held, None
        if held is None:
            return
        block = held.step // self._stride
        is_more = held.saved or held.eval_loss is not None or held.step >= self._progress.total_steps
        if block == self._last_block and not is_more:
            return
        self._last_block = block
        if not self._columns:
            self._columns = self._choose_columns(held.metrics)
            self._print("  ".join(title.rjust(width) for title, width in self._columns))
        cells = _cells(held, self._progress.total_steps)
        row = "  ".join(cells[title].rjust(width) for title, width in self._columns)
        self._print(f"{row}{' saved' if held.saved else ''}".rstrip())

    def _choose_columns(self, line: dict[str, float]) -> list[tuple[str, int]]:
        widths = {"step": 2 * len(str(self._progress.total_steps)) + 1, "loss": 7, "eval": 7, "lr": 7, "grad": 6}
        widths |= {"tok/s": 6} | ({"MFU": 5} if record.MFU in line else {}) | {"time": 6, "wait": 6, "left": 6}
        return list(widths.items())

    def _print(self, text: str) -> None:
        self._stream.write(f"{text.translate(_CONTROL)}\n")


def _cells(row: _Row, total_steps: int) -> dict[str, str]:
    line = row.metrics
    mfu = line.get(record.MFU)
    return {
        "step": f"{row.step}/{total_steps}",
        "loss": number(line.get(record.TRAIN_LOSS)),
        "eval": number(row.eval_loss),
        "lr": number(line.get(record.TRAIN_LR), ".1e"),
        "grad": number(line.get(record.TRAIN_GRAD_NORM), ".3g"),
        "tok/s": _count(line.get(record.TOKENS_PER_SECOND)),
        "MFU": "" if mfu is None else f"{100 * mfu:.1f}%",
        "time": _seconds(line.get(record.STEP_SECONDS)),
        "wait": _seconds(line.get(record.DATA_WAIT_SECONDS)),
        "left": rounded_seconds(row.seconds_left),
    }


def _count(value: float | None) -> str:
    return "" if value is None else format_count(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else format_seconds(value)
