"""`shardyard watch`: a live view of a run in the terminal: progress, loss, evaluations, speed, memory, events."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shardyard.cli.options import RunsDir
from shardyard.cli.view import complete
from shardyard.cli.view.live import THREE_COLUMNS_WIDTH, TITLE_MARGIN, LiveView
from shardyard.cli.view.plot import plot
from shardyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PREEMPTED, RunFolderError
from shardyard.launch.describe import describe, metrics_in_words, number
from shardyard.launch.run.follow import RunTail, follow
from shardyard.launch.run.progress import Progress, rounded_seconds
from shardyard.tracking.metrics import record
from shardyard.tracking.run.events import Evaluated, Event
from shardyard.tracking.run.folder import RunFolder, runs_folder
from shardyard.tracking.run.summary import summarize
from shardyard.units import format_bytes, format_count, format_seconds

POLL_SECONDS = 0.5
STATE_SECONDS = 2.0
EVALUATIONS = 4
EVENTS = 5
_ENDS = {"failed": EXIT_FAILED, "lost": EXIT_FAILED, "interrupted": EXIT_INTERRUPTED, "preempted": EXIT_PREEMPTED}
_COLORS = {"finished": "green", "failed": "red", "lost": "red", "running": "cyan"}

RunArgument = Annotated[
    str,
    typer.Argument(metavar="[RUN]", autocompletion=complete.run_ids, help="Id, unique beginning, path, or `latest`."),
]


def watch(
    run: RunArgument = "latest",
    metric: Annotated[str, typer.Option("--metric", "-m", help="Metric to plot.")] = record.TRAIN_LOSS,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic axis.")] = False,
    once: Annotated[bool, typer.Option("--once", help="Show the current state and exit.")] = False,
    runs_dir: RunsDir = None,
) -> int:
    """Follow a run until it ends, and exit with its exit code. Ctrl-C does not stop the run.

    In a pipe, plain lines are printed.
    """
    folder = RunFolder.open(runs_folder(runs_dir), run)
    folder.info()
    console = Console()
    try:
        if console.is_terminal or once:
            return _draw(folder, console, metric, log=log, once=once)
        return _print_lines(folder, console)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _print_lines(folder: RunFolder, console: Console) -> int:
    """Print the lines that `launch` prints in a pipe, from the beginning of the run."""
    info = folder.info()
    total = info.total_steps or info.step
    stop = threading.Event()
    with LiveView(console, folder.id, total) as view:
        thread = threading.Thread(target=follow, args=(folder, view, stop), daemon=True)
        thread.start()
        try:
            state = _wait(folder, stop)
        finally:
            stop.set()
            thread.join(5)
    console.print(f"{folder.id}: {state}", markup=False, highlight=False, soft_wrap=True)
    return _ENDS.get(state, EXIT_DONE)


def _wait(folder: RunFolder, stop: threading.Event) -> str:
    while (state := _state(folder)) in ("pending", "running"):
        stop.wait(STATE_SECONDS)
    return state


def _state(folder: RunFolder) -> str:
    try:
        return summarize(folder).state
    except OSError:
        return "running"  # a temporary error of a network disk


class Watched:
    """The view of a run, updated from the run folder."""

    def __init__(self, folder: RunFolder, metric: str) -> None:
        info = folder.info()
        self.folder = folder
        self.metric = metric
        self.progress = Progress(folder.id, info.total_steps or 0)
        self.points: dict[float, float] = {}
        self.evaluations: deque[tuple[int, dict[str, float]]] = deque(maxlen=EVALUATIONS)
        self.events: deque[tuple[float, str]] = deque(maxlen=EVENTS)
        self.state = _state(folder)
        self._state_read_at = time.monotonic()
        self._tail = RunTail(folder)

    def update(self) -> None:
        """Read new data; unreadable files are retried later."""
        try:
            new = self._tail.new()
        except OSError:
            return
        for one in new:
            if isinstance(one, Event):
                self._add_event(one)
            else:
                self._add(one)
        if self.state in ("pending", "running") and time.monotonic() - self._state_read_at >= STATE_SECONDS:
            self.state, self._state_read_at = _state(self.folder), time.monotonic()

    def _add(self, line: dict[str, float]) -> None:
        self.progress.add_metrics(line)
        if "step" not in line:
            return
        step = int(line["step"])
        if self.metric in line:
            self.points[step] = line[self.metric]
        if found := record.evaluation_of(line):
            self.evaluations.append((step, found))

    def _add_event(self, event: Event) -> None:
        self.progress.add_event(event)
        if not isinstance(event, Evaluated) and (text := describe(event)):
            self.events.append((event.time or 0.0, text))

    def drawn(self, console: Console, *, log: bool) -> RenderableType:
        """The whole view, as large as the terminal."""
        width, color = console.width, _COLORS.get(self.state, "yellow")
        parts: list[RenderableType] = [self._bar(color), Text(""), self._numbers(width)]
        room = max(5, min(16, console.height - 12 - EVENTS - len(self.evaluations)))
        plain = not console.encoding.lower().startswith("utf")
        lines = plot(sorted(self.points.items()), width - 4, room, ascii_only=plain, log=log)
        if lines:
            parts += [Text(""), Text(self.metric, style="dim"), Text("\n".join(lines), style=color, no_wrap=True)]
        parts += [Text("")] if self.evaluations or self.events else []
        for step, found in self.evaluations:
            parts.append(Text(f"evaluation at step {step}: {metrics_in_words(found)}", overflow="fold"))
        for moment, text in self.events:
            clock = time.strftime("%H:%M:%S", time.localtime(moment)) if moment else ""
            parts.append(Text(f"{clock} {text}".strip(), style="dim", overflow="ellipsis", no_wrap=True))
        title = Text(f"{self.folder.id}: {self.state}", style="bold")
        if len(title) > width - TITLE_MARGIN:  # ids are copied by hand, so they are never truncated
            parts.insert(0, Text(self.folder.id, style="bold", overflow="fold"))
            title = Text(self.state, style="bold")
        return Panel(Group(*parts), title=title, title_align="left", border_style=color, width=width, padding=(0, 1))

    def _bar(self, color: str) -> RenderableType:
        progress = self.progress
        if not progress.total_steps:
            return Text(f"step {progress.step}")
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(no_wrap=True, justify="right")
        total, step = progress.total_steps, min(progress.step, progress.total_steps)
        bar = ProgressBar(total, step, complete_style=color, finished_style=color)
        row.add_row(f"step {progress.step}/{total}", bar, f"{100 * step // total}%")
        return row

    def _numbers(self, width: int) -> RenderableType:
        metrics = self.progress.metrics
        memory = metrics.get(record.PEAK_ALLOCATED_BYTES, metrics.get(record.RSS_BYTES))
        rate, seconds, mfu = (metrics.get(name) for name in (record.TOKENS_PER_SECOND, record.STEP_SECONDS, record.MFU))
        left = self.progress.seconds_left() if self.state == "running" else None
        items = {
            "train loss": number(metrics.get(record.TRAIN_LOSS)),
            "eval loss": number(self.progress.eval_loss),
            "learning rate": number(metrics.get(record.TRAIN_LR), ".2e"),
            "tokens/s": "" if rate is None else format_count(rate),
            "step time": "" if seconds is None else format_seconds(seconds),
            "time left": rounded_seconds(left),
            "grad norm": number(metrics.get(record.TRAIN_GRAD_NORM), ".3g"),
            "MFU": "" if mfu is None else f"{100 * mfu:.1f}%",
            "memory": "" if memory is None else format_bytes(memory),
        }
        grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
        columns = 3 if width >= THREE_COLUMNS_WIDTH else 2
        for _ in range(columns):
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(ratio=1, no_wrap=True)
        cells = [cell for name, value in items.items() for cell in (name, Text(value or "-"))]
        for begin in range(0, len(cells), 2 * columns):
            grid.add_row(*cells[begin : begin + 2 * columns])
        return grid


def _draw(folder: RunFolder, console: Console, metric: str, *, log: bool, once: bool) -> int:
    watched = Watched(folder, metric)
    watched.update()
    if metric != record.TRAIN_LOSS and not watched.points and watched.progress.metrics:
        names = ", ".join(sorted(name for name in watched.progress.metrics if "/" in name)[:12])
        raise RunFolderError(f"{folder.id} has no metric {metric!r}; it has {names}.")
    if once:
        console.print(watched.drawn(console, log=log))
        return EXIT_DONE
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.update(watched.drawn(console, log=log), refresh=True)
            if watched.state not in ("pending", "running"):
                break
            time.sleep(POLL_SECONDS)
            watched.update()
        watched.update()
        live.update(watched.drawn(console, log=log), refresh=True)
    return _ENDS.get(watched.state, EXIT_DONE)
