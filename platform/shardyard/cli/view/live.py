"""The live view of a run: one panel in a terminal, about 25 plain lines in a pipe."""

from __future__ import annotations

import time
from typing import Any, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shardyard.cli.view.plot import bars as sparkline
from shardyard.launch.describe import describe, number
from shardyard.launch.run.lines import PlainLines, RunView
from shardyard.launch.run.progress import Progress, rounded_seconds
from shardyard.tracking.metrics import record
from shardyard.tracking.run.events import Event
from shardyard.units import format_count, format_seconds

REFRESH_PER_SECOND = 4
PANEL_COLUMNS = 100
# Width of a panel's frame and title, and the width from which three numbers fit side by side.
TITLE_MARGIN = 6
THREE_COLUMNS_WIDTH = 76


class LiveView(RunView):
    """Shows a run on a console or stream, as a context manager: a panel on a terminal, plain lines otherwise.

    `total_steps` is the last step of the run, `resumed_step` the step from which this launch continues.
    """

    def __init__(self, console: Console | TextIO, run_id: str, total_steps: int, *, resumed_step: int = 0) -> None:
        console = console if isinstance(console, Console) else Console(file=console)
        progress = Progress(run_id, total_steps, resumed_step)
        super().__init__(
            progress, _PanelView(console, progress) if console.is_terminal else PlainLines(console.file, progress)
        )


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
            # A terminal with few lines shows the top of the panel instead of repeating it.
            vertical_overflow="crop",
            # Output of libraries goes to driver.log, because both streams are already redirected to it.
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def open(self) -> None:
        self._live.start(refresh=True)

    def close(self) -> None:
        self._live.stop()

    def metrics(self, line: dict[str, Any]) -> None:
        """Nothing to do: the next refresh shows it."""

    def event(self, event: Event) -> None:
        if event.severity != "info":
            # Warnings are also printed above the panel, where the next event does not replace them.
            self.message(describe(event), "red" if event.severity == "error" else "yellow")

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
        if len(title) > width - TITLE_MARGIN:  # ids are copied by hand, so they are never truncated
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
            ("time left", rounded_seconds(progress.seconds_left())),
            ("eval loss", number(progress.eval_loss)),
            ("step time", _seconds(metrics.get(record.STEP_SECONDS))),
            ("elapsed", rounded_seconds(time.monotonic() - self._started)),
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


def _count(value: float | None) -> str:
    return "" if value is None else format_count(value)


def _seconds(value: float | None) -> str:
    return "" if value is None else format_seconds(value)
