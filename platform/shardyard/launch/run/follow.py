"""Following a run through its folder: new lines of metrics.jsonl and events.jsonl, in order."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

from shardyard.tracking.files import MetricsTail
from shardyard.tracking.run.events import Event, EventTail
from shardyard.tracking.run.folder import RunFolder


class Observer(Protocol):
    """Receives the records and events of a run."""

    def on_metrics(self, records: list[dict[str, float]]) -> None:
        """Lines of metrics.jsonl, in order."""

    def on_events(self, events: list[Event]) -> None:
        """Events, in order."""


@contextmanager
def following(folder: RunFolder, observer: Observer | None) -> Iterator[None]:
    """Pass new records and events to an observer, on a separate thread, within the context."""
    if observer is None:
        yield
        return
    over = threading.Event()
    new_run = not folder.metrics.exists()
    work = partial(follow, folder, observer, over, from_start=new_run)
    thread = threading.Thread(target=work, name="shardyard-follow", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=5)


def follow(
    folder: RunFolder,
    observer: Observer,
    over: threading.Event,
    interval_seconds: float = 0.25,
    *,
    from_start: bool = True,
) -> None:
    """Pass records and events to an observer until `over` is set, and once more then, so that none is missed.

    `from_start=False` skips existing lines, as for a resumed run. Blocks, so it usually runs on a thread. Temporary
    read errors are retried.
    """
    tail = RunTail(folder, from_start=from_start)
    while not over.is_set():
        _feed(observer, tail.new)
        over.wait(interval_seconds)
    _feed(observer, tail.rest)


def _feed(observer: Observer, read: Callable[[], list[dict[str, float] | Event]]) -> None:
    """Pass on new lines in chronological order."""
    try:
        new = read()
    except OSError:
        return  # a temporary error of a network disk; the next read continues here
    for one in new:
        if isinstance(one, Event):
            observer.on_events([one])
        else:
            observer.on_metrics([one])


class RunTail:
    """New lines of two files that are written while they are read, in the order in which they were written.

    Whatever is read second holds lines that are newer than the end of what was read first. So events are read before
    the metrics and after them; of the second read only those pass that are older than the newest metrics, the others
    wait for the next call.
    """

    def __init__(self, folder: RunFolder, *, from_start: bool = True) -> None:
        self._metrics = MetricsTail(folder.metrics, 0 if from_start else _size(folder.metrics))
        self._events = EventTail(folder.events, 0 if from_start else _size(folder.events))
        self._waiting: list[Event] = []

    def new(self) -> list[dict[str, float] | Event]:
        """Lines since the last call; raises OSError, after which a further call loses nothing."""
        self._waiting += self._events.new()
        before = len(self._waiting)
        lines = self._metrics.new()
        newest = max((line.get("time", 0.0) for line in lines), default=-math.inf)
        events, self._waiting = self._waiting[:before], self._waiting[before:]
        try:
            later = self._events.new()
        except OSError:
            later = []  # read again by the next call
        events += [event for event in later if (event.time or 0.0) <= newest]
        self._waiting += [event for event in later if (event.time or 0.0) > newest]
        return _in_order(lines, events)

    def rest(self) -> list[dict[str, float] | Event]:
        """What is left after the last line was written; raises OSError."""
        lines = self._metrics.new()
        events, self._waiting = self._waiting + self._events.new(), []
        return _in_order(lines, events)


def _in_order(lines: list[dict[str, float]], events: list[Event]) -> list[dict[str, float] | Event]:
    """Lines of metrics.jsonl and events by their times."""
    timed: list[tuple[float, dict[str, float] | Event]] = [(line.get("time", 0.0), line) for line in lines]
    timed += [(event.time or 0.0, event) for event in events]
    return [one for _, one in sorted(timed, key=lambda item: item[0])]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
