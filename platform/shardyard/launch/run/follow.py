"""Following a run through its folder as it grows: what is new of metrics.jsonl and events.jsonl, in its order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from shardyard.tracking.files import JsonlTail
from shardyard.tracking.run.folder import RunFolder


class Observer(Protocol):
    """Who is told what a run records. Nobody needs to know who writes it."""

    def on_metrics(self, records: list[dict[str, Any]]) -> None:
        """Lines of metrics.jsonl, in their order."""

    def on_events(self, events: list[dict[str, Any]]) -> None:
        """Lines of events.jsonl, in their order."""


@contextmanager
def following(folder: RunFolder, observer: Observer | None) -> Iterator[None]:
    """Tell an observer, on a thread of its own, what the run records within the block; not its past."""
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
    """Tell an observer what a run folder gains until `over` is set, and once more then, so that nothing is missed.

    `from_start=False` begins with what is added from now on: a resumed run need not tell its past again.
    Blocks, so it usually runs on a thread. A file that cannot be read for a while is tried again.
    """
    metrics, events = (JsonlTail(path, 0 if from_start else _size(path)) for path in (folder.metrics, folder.events))
    while not over.is_set():
        _feed(observer, metrics, events)
        over.wait(interval_seconds)
    _feed(observer, metrics, events)


def _feed(observer: Observer, metrics: JsonlTail, events: JsonlTail) -> None:
    """Tell what is new in the order in which it happened."""
    try:
        new = [(line, True) for line in metrics.new()] + [(line, False) for line in events.new()]
    except OSError:
        return  # a network disk that stumbles; the next look continues where this one did
    for line, is_metrics in sorted(new, key=lambda item: float(item[0].get("time") or 0.0)):
        (observer.on_metrics if is_metrics else observer.on_events)([line])


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
