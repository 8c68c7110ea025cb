"""Server-sent events: changed rows of runs, new points of curves, new lines of logs. Only changes are sent.

GET /api/stream?runs=a,b&metrics=train/loss&x=step&cursors=a:100,b:20&log=a:0:driver&version=17

event: runs     {"version": n, "runs": [row, …], "gone": [id, …]}
event: series   {"series": [{"run", "metric", "x": […], "y": […], "cursor": n}]}
event: log      {"run", "rank", "lines": […], "cursor": n}
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import anyio
from anyio import to_thread
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from shardyard.dashboard.charts.series import AXES
from shardyard.dashboard.index.listing import rows_since
from shardyard.dashboard.web.answers import Answer, BadRequestError, encoded, listed, numbers
from shardyard.dashboard.web.api import MOST_METRICS_AT_ONCE, MOST_RUNS_AT_ONCE, State, state_of
from shardyard.dashboard.web.logs import read_log

PERIOD_SECONDS = 1.0
ALIVE_SECONDS = 15.0
MOST_STREAMS = 64


@dataclass
class Watch:
    """The subscriptions of one page, and its cursors."""

    metrics: list[str]
    axis: str
    cursors: dict[str, int]
    version: int
    log: tuple[str, str] | None = None
    log_cursor: int = -1
    sent_at: float = field(default_factory=time.monotonic)


async def stream(request: Request) -> Response:
    """Stream changes of runs until the page disconnects."""
    state = state_of(request)
    if state.streams >= MOST_STREAMS:
        return Answer({"error": f"{MOST_STREAMS} pages are open; close some."}, 503)
    watch = _watch(request, state)
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(request, state, watch), media_type="text/event-stream", headers=headers)


def _watch(request: Request, state: State) -> Watch:
    query = request.query_params
    axis = query.get("x", "step")
    if axis not in AXES:
        raise BadRequestError(f"x is {axis[:50]!r}; it is one of {', '.join(AXES)}", "x")
    cursors = dict.fromkeys(listed(request, "runs", MOST_RUNS_AT_ONCE), 0)
    for part in listed(request, "cursors", MOST_RUNS_AT_ONCE):
        run_id, _, cursor = part.rpartition(":")
        if run_id in cursors and cursor.isdecimal():
            cursors[run_id] = int(cursor)
    version = query.get("version") or request.headers.get("last-event-id") or ""
    watch = Watch(
        metrics=listed(request, "metrics", MOST_METRICS_AT_ONCE),
        axis=axis,
        cursors=cursors,
        version=int(version) if version.isdecimal() else state.index.version,
    )
    run_id, _, rest = query.get("log", "").partition(":")
    if run_id:
        cursor, _, rank = rest.partition(":")
        watch.log_cursor = int(cursor) if cursor.isdecimal() else -1
        watch.log = (run_id, rank or "driver")
    return watch


async def _events(request: Request, state: State, watch: Watch) -> AsyncIterator[bytes]:
    state.streams += 1
    try:
        yield b"retry: 2000\n\n"
        while not await request.is_disconnected():
            for message in await to_thread.run_sync(_news, state, watch):
                yield message
            await anyio.sleep(PERIOD_SECONDS)
    finally:
        state.streams -= 1


class NewPoints(TypedDict):
    """Points of a curve since the last message; `replace`: instead of all earlier ones, as the file was replaced."""

    run: str
    metric: str
    x: list[float | None]
    y: list[float | None]
    cursor: int
    replace: bool


def _news(state: State, watch: Watch) -> list[bytes]:
    """The changes since the last call; an occasional comment keeps the connection alive."""
    state.index.watch()
    messages: list[bytes] = []
    if state.index.version > watch.version:
        newest = state.index.version
        rows, gone = rows_since(state.connection, watch.version)
        watch.version = rows[-1]["version"] if len(rows) == 1000 else newest
        messages.append(_message("runs", {"version": watch.version, "runs": rows, "gone": gone}, watch.version))
        messages += _points(state, watch, {row["id"]: row["cursor"] for row in rows})
    messages += _lines(state, watch)
    now = time.monotonic()
    if messages:
        watch.sent_at = now
    elif now - watch.sent_at > ALIVE_SECONDS:
        watch.sent_at = now
        messages.append(b": alive\n\n")
    return messages


def _points(state: State, watch: Watch, changed: dict[str, int]) -> list[bytes]:
    found: list[NewPoints] = []
    for run_id, rows in changed.items():
        key = state.index.key_of(run_id)
        since = watch.cursors.get(run_id)
        if since is None or key is None or rows == since:
            continue
        # Fewer rows than before: the file was replaced, and the page redraws the curve.
        again = rows < since
        for metric in watch.metrics:
            curve = state.reader.curve(state.connection, key, metric, watch.axis, 0 if again else since)
            if curve.x.size:
                x, y = numbers(curve.x), numbers(curve.y, 7)
                found.append({"run": run_id, "metric": metric, "x": x, "y": y, "cursor": curve.rows, "replace": again})
        watch.cursors[run_id] = rows
    return [_message("series", {"series": found})] if found else []


def _lines(state: State, watch: Watch) -> list[bytes]:
    if watch.log is None:
        return []
    run_id, rank = watch.log
    folder: Path | None = state.index.folder_of(run_id)
    if folder is None or (rank != "driver" and not (rank.isascii() and rank.isdecimal() and len(rank) < 8)):
        return []
    try:
        found = read_log(folder, rank, cursor=watch.log_cursor)
    except OSError:
        return []
    news = found["lines"] if watch.log_cursor != found["cursor"] else []
    watch.log_cursor = found["cursor"]
    return [_message("log", {"run": run_id, "rank": rank, **found})] if news else []


def _message(event: str, content: Mapping[str, object], number: int | None = None) -> bytes:
    # JSON has no raw line breaks, so one data line is enough.
    name = f"id: {number}\n" if number is not None else ""
    return f"{name}event: {event}\ndata: ".encode() + encoded(content) + b"\n\n"
