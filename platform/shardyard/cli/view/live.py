"""What a person sees while a run trains: one live panel in a terminal, about 25 plain lines in a pipe.

Both are fed from the run folder, as it grows, by `watch`; neither knows who writes it.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shardyard.cli.view.plot import bars as sparkline
from shardyard.cli.view.progress import Progress, describe, number, whole_seconds
from shardyard.tracking.files import JsonlTail
from shardyard.tracking.metrics import record
from shardyard.tracking.run.folder import RunFolder
from shardyard.units import format_count, format_seconds

REFRESH_PER_SECOND = 4
PANEL_COLUMNS = 100
PLAIN_ROWS = 20
# Of a panel: what its frame takes of a line with the title, and from where on three numbers stand beside each other.
TITLE_MARGIN = 6
THREE_COLUMNS_WIDTH = 76


class LiveView:
    """Shows a run on a console or stream, as a context manager: a panel on a terminal, plain lines otherwise.

    `total_steps` is the last step of the run, `resumed_step` the one this launch goes on from.
    """

    def __init__(self, console: Console | TextIO, run_id: str, total_steps: int, *, resumed_step: int = 0) -> None:
        console = console if isinstance(console, Console) else Console(file=console)
        self.progress = Progress(run_id, total_steps, resumed_step)
        self._view = (_PanelView if console.is_terminal else _PlainView)(console, self.progress)
        self._lock = threading.Lock()

    def __enter__(self) -> LiveView:
        self._view.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._view.close()

    def on_metrics(self, records: list[dict[str, Any]]) -> None:
        """Show lines of metrics.jsonl, in their order."""
        with self._lock:
            for line in records:
                self.progress.add_metrics(line)
                self._view.metrics(line)

    def on_events(self, events: list[dict[str, Any]]) -> None:
        """Show lines of events.jsonl, in their order."""
        with self._lock:
            for event in events:
                self.progress.add_event(event)
                self._view.event(event)

    def message(self, text: str) -> None:
        """Show a line of text above the panel, or among the lines."""
        with self._lock:
            self._view.message(text)


def watch(
    folder: RunFolder,
    view: LiveView,
    stop: threading.Event,
    interval_seconds: float = 0.25,
    *,
    from_start: bool = True,
) -> None:
    """Feed a view from a run folder until `stop` is set, and once more then, so that nothing is missed.

    `from_start=False` begins with what is added from now on: a resumed run need not tell its past again.
    Blocks, so it usually runs on a thread. A file that cannot be read for a while is tried again.
    """
    metrics, events = (JsonlTail(path, 0 if from_start else _size(path)) for path in (folder.metrics, folder.events))
    while not stop.is_set():
        _feed(view, metrics, events)
        stop.wait(interval_seconds)
    _feed(view, metrics, events)


def _feed(view: LiveView, metrics: JsonlTail, events: JsonlTail) -> None:
    """Show what is new in the order in which it happened."""
    try:
        new = [(line, view.on_metrics) for line in metrics.new()] + [(line, view.on_events) for line in events.new()]
    except OSError:
        return  # a network disk that stumbles; the next look continues where this one did
    for line, show in sorted(new, key=lambda item: float(item[0].get("time") or 0.0)):
        show([line])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class _PlainView:
    """A line for each twentieth of the run, each evaluation and checkpoint, and whatever else happens."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._stride = max(1, progress.total_steps // PLAIN_ROWS)
        self._columns: list[tuple[str, int]] = []
        # A step is held back until the next one begins, because its evaluation and checkpoint belong on its line.
        self._held: dict[str, Any] | None = None
        self._last_block = -1

    def open(self) -> None:
        self.message(f"{self._progress.run_id}: {self._progress.total_steps} steps")

    def close(self) -> None:
        self._flush()

    def metrics(self, line: dict[str, Any]) -> None:
        if self._held is not None and self._held["step"] != line.get("step"):
            self._flush()
        # How long it takes is known now; when the line is printed, it may already be about the next step.
        self._held = {**(self._held or {"notes": []}), **line, "left": self._progress.seconds_left()}
        if (loss := record.newest_eval_loss(line)) is not None:
            self._held["eval"] = loss

    def event(self, event: dict[str, Any]) -> None:
        if self._held is not None and event.get("step") == self._held["step"]:
            if event.get("kind") == "evaluation":
                self._held["eval"] = event.get("loss")
                return
            if event.get("kind") == "checkpoint":
                self._held["notes"].append("saved")
                return
        if text := describe(event):
            self._flush()
            self._print(f"* {text}")
            if event.get("kind") == "attempt":
                self._last_block = -1  # the first step after a restart shows where it goes on

    def message(self, text: str) -> None:
        self._flush()
        self._print(text)

    def _flush(self) -> None:
        line, self._held = self._held, None
        if line is None:
            return
        step = int(line["step"])
        block = step // self._stride
        if block == self._last_block and step < self._progress.total_steps and "eval" not in line and not line["notes"]:
            return
        self._last_block = block
        if not self._columns:
            self._columns = self._choose_columns(line)
            self._print("  ".join(title.rjust(width) for title, width in self._columns))
        cells = _cells(line, self._progress.total_steps)
        row = "  ".join(cells[title].rjust(width) for title, width in self._columns)
        self._print(" ".join([row, *line["notes"]]).rstrip())

    def _choose_columns(self, line: dict[str, Any]) -> list[tuple[str, int]]:
        widths = {"step": 2 * len(str(self._progress.total_steps)) + 1, "loss": 7, "eval": 7, "lr": 7, "grad": 6}
        widths |= {"tok/s": 6} | ({"MFU": 5} if record.MFU in line else {}) | {"time": 6, "wait": 6, "left": 6}
        return list(widths.items())

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True, emoji=False)


class _PanelView:
    """One panel that is redrawn in place; its last state stays on the screen."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._started = time.monotonic()
        self._live = Live(
            console=console,
            get_renderable=self._draw,
            refresh_per_second=REFRESH_PER_SECOND,
            # A terminal of few lines gets the top of the panel, not a flood of copies of it.
            vertical_overflow="crop",
        )

    def open(self) -> None:
        self._live.start(refresh=True)

    def close(self) -> None:
        self._live.stop()

    def metrics(self, line: dict[str, Any]) -> None:
        """The next refresh shows it."""

    def event(self, event: dict[str, Any]) -> None:
        if event.get("kind") in ("failure", "checkpoint_failed", "notice", "waiting", "length"):
            # What a person may have to act on stays on the screen when the next event replaces it in the panel.
            self.message(describe(event), "red" if event.get("kind") == "failure" else "yellow")

    def message(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def _draw(self) -> RenderableType:
        progress = self._progress
        color = "red" if progress.failed else "green" if progress.ended else "cyan"
        parts: list[RenderableType] = [self._bar(color), Text(""), self._numbers()]
        if curve := self._curve():
            parts += [Text(""), curve]
        parts += [Text(""), Text(progress.last_event or "starting", style="dim", no_wrap=True, overflow="ellipsis")]
        width = min(PANEL_COLUMNS, self._console.width)
        title = Text(progress.run_id, style="bold")
        if len(title) > width - TITLE_MARGIN:  # an id is typed again, so it is never cut
            parts.insert(0, title)
            return Panel(Group(*parts), border_style=color, width=width, padding=(0, 1))
        return Panel(Group(*parts), title=title, title_align="left", border_style=color, width=width, padding=(0, 1))

    def _bar(self, color: str) -> RenderableType:
        progress, total = self._progress, max(1, self._progress.total_steps)
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        bar = ProgressBar(total, progress.step, complete_style=color, finished_style=color)
        row.add_row(f"step {progress.step}/{progress.total_steps}", bar, f"{100 * min(progress.step, total) // total}%")
        return row

    def _numbers(self) -> RenderableType:
        progress, metrics = self._progress, self._progress.metrics
        ranks = "" if progress.world_size is None else str(progress.world_size)
        last = ("tokens", _count(metrics.get(record.TRAIN_TOKENS)))
        if record.MFU in metrics:
            last = ("MFU", f"{100 * metrics[record.MFU]:.1f}%")
        items = [
            ("train loss", number(metrics.get(record.TRAIN_LOSS))),
            ("tokens/s", _count(metrics.get(record.TOKENS_PER_SECOND))),
            ("time left", whole_seconds(progress.seconds_left())),
            ("eval loss", number(progress.eval_loss)),
            ("step time", _seconds(metrics.get(record.STEP_SECONDS))),
            ("elapsed", whole_seconds(time.monotonic() - self._started)),
            ("grad norm", number(metrics.get(record.TRAIN_GRAD_NORM), ".3g")),
            ("data wait", _seconds(metrics.get(record.DATA_WAIT_SECONDS))),
            ("ranks", ranks),
            ("learning rate", number(metrics.get(record.TRAIN_LR), ".2e")),
            last,
            ("attempt", str(progress.attempt)),
        ]
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        columns = 3 if self._console.width >= THREE_COLUMNS_WIDTH else 2
        for _ in range(columns):
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(ratio=1, no_wrap=True)
        cells = [cell for name, value in items for cell in (name, Text(value or "-", style="bold" if value else "dim"))]
        for begin in range(0, len(cells), 2 * columns):
            grid.add_row(*cells[begin : begin + 2 * columns])
        return grid

    def _curve(self) -> RenderableType | None:
        losses = list(self._progress.losses)
        if len(losses) < 2 or not self._console.encoding.lower().startswith("utf"):
            return None
        return Text(
            f"loss  {sparkline(losses, min(PANEL_COLUMNS, self._console.width) - 10)}", style="cyan", no_wrap=True
        )


def _cells(line: dict[str, Any], total_steps: int) -> dict[str, str]:
    mfu = line.get(record.MFU)
    return {
        "step": f"{line['step']}/{total_steps}",
        "loss": number(line.get(record.TRAIN_LOSS)),
        "eval": number(line.get("eval")),
        "lr": number(line.get(record.TRAIN_LR), ".1e"),
        "grad": number(line.get(record.TRAIN_GRAD_NORM), ".3g"),
        "tok/s": _count(line.get(record.TOKENS_PER_SECOND)),
        "MFU": "" if mfu is None else f"{100 * mfu:.1f}%",
        "time": _seconds(line.get(record.STEP_SECONDS)),
        "wait": _seconds(line.get(record.DATA_WAIT_SECONDS)),
        "left": whole_seconds(line["left"]),
    }


def _count(value: float | None) -> str:
    return "" if value is None else format_count(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else format_seconds(value)
