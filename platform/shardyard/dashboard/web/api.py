"""The API of runs: lists, curves, logs, events, comparison. Each function answers one route."""

from __future__ import annotations

import csv
import io
import math
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from shardyard import __version__
from shardyard.dashboard.charts.marks import marks as marks_of
from shardyard.dashboard.charts.series import AXES, MOST_POINTS, Reader, chart
from shardyard.dashboard.index.index import Index
from shardyard.dashboard.index.listing import ListingQuery, list_runs, row_of
from shardyard.dashboard.web import details, logs
from shardyard.dashboard.web.answers import Answer, BadRequestError, NotFoundError, integer, listed, numbers, real
from shardyard.dashboard.web.report import html_report
from shardyard.dashboard.web.security import Gate
from shardyard.launch.schedulers.registry import DEFAULT, scheduler_class

MOST_RUNS_AT_ONCE = 200
MOST_METRICS_AT_ONCE = 200
MOST_SERIES = 2000
# More digits than a screen shows; integers such as steps keep all digits.
_DIGITS = 7


@dataclass
class State:
    """State shared by all routes. `address` is the Ray cluster's, as given on the command line."""

    index: Index
    gate: Gate
    address: str | None = None
    reader: Reader = field(default_factory=Reader)
    streams: int = 0

    @property
    def connection(self) -> sqlite3.Connection:
        """The index, for this thread."""
        self.index.watch()
        return self.index.store.reader

    def row(self, run_id: str) -> sqlite3.Row:
        """A run in the index.

        Raises:
            NotFoundError: the run is unknown. Only ids of known runs ever become paths.
        """
        key = self.index.key_of(run_id)
        row = self.connection.execute("SELECT * FROM runs WHERE key = ?", (key,)).fetchone() if key else None
        if row is None:
            raise NotFoundError(f"There is no run {run_id[:100]!r}; it may have been removed.")
        return row  # type: ignore[no-any-return]

    def run(self, request: Request) -> tuple[sqlite3.Row, Path]:
        """The run named by the request path, and its folder."""
        row = self.row(request.path_params["id"])
        return row, self.index.runs_dir / row["id"]

    def keys(self, request: Request, most: int = MOST_RUNS_AT_ONCE) -> dict[str, int]:
        """Ids and keys of the runs named by the query string; removed runs are omitted."""
        found = {run_id: self.index.key_of(run_id) for run_id in listed(request, "runs", most)}
        return {run_id: key for run_id, key in found.items() if key is not None}


def state_of(request: Request) -> State:
    """The state of the server."""
    state: State = request.app.state.dashboard
    return state


def session(request: Request) -> Response:
    """The data that the page needs first."""
    state = state_of(request)
    return Answer(
        {
            "csrf": state.gate.csrf,
            "version": __version__,
            "runs_dir": str(state.index.runs_dir),
            "cluster": state.address is not None or scheduler_class(DEFAULT).is_configured(),
            "unread": state.index.unread,
            "problems": state.index.problems,
        }
    )


def runs(request: Request) -> Response:
    """The table."""
    state, query = state_of(request), request.query_params
    began = time.perf_counter()
    wanted = ListingQuery(
        query=query.get("query", ""),
        sort=query.get("sort", ""),
        columns=tuple(listed(request, "columns", 40)),
        offset=integer(request, "offset", 0, 0, 10**9),
        limit=integer(request, "limit", 100, 0, 1000),
        group=query.get("group", ""),
    )
    found = list_runs(state.connection, wanted)
    found |= {"problems": state.index.problems, "unread": state.index.unread, "version": state.index.version}
    answer = Answer(found)
    answer.headers["server-timing"] = f"list;dur={(time.perf_counter() - began) * 1000:.1f}"
    return answer


def run(request: Request) -> Response:
    """One run."""
    state = state_of(request)
    row, folder = state.run(request)
    return Answer(details.detail(state.connection, row, folder, row_of(row)))


def recipe(request: Request) -> Response:
    """The recipe of a run."""
    row, folder = state_of(request).run(request)
    return Answer(details.recipe(folder, details.info_of(row)))


def events(request: Request) -> Response:
    """The events of a run."""
    _, folder = state_of(request).run(request)
    return Answer(details.events(folder, integer(request, "cursor", 0, 0, 2**53)))


def marks(request: Request) -> Response:
    """Restarts, failures, checkpoints and spikes, on the x axis of the curves."""
    state = state_of(request)
    row, folder = state.run(request)
    happened = details.happened(folder)
    return Answer({"marks": marks_of(state.reader, state.connection, row["key"], happened, axis_of(request))})


def samples(request: Request) -> Response:
    """The samples of the model."""
    _, folder = state_of(request).run(request)
    return Answer(details.samples(folder, integer(request, "cursor", 0, 0, 2**53)))


def experts(request: Request) -> Response:
    """Balance of the experts."""
    _, folder = state_of(request).run(request)
    step = integer(request, "step", -1, -1, 2**53)
    return Answer(details.experts(folder, None if step < 0 else step))


def log(request: Request) -> Response:
    """Lines of a log."""
    _, folder = state_of(request).run(request)
    query = request.query_params
    rank = query.get("rank", "driver")
    if rank != "driver" and not (rank.isascii() and rank.isdecimal() and len(rank) < 8):
        raise BadRequestError(f"rank is {rank[:50]!r}; it is `driver` or the number of a rank", "rank")
    try:
        found = logs.read_log(
            folder,
            rank,
            cursor=integer(request, "cursor", -1, -1, 2**53),
            search=query.get("search", "")[:200],
            errors=query.get("errors") in ("1", "true"),
            lines=integer(request, "lines", 500, 1, logs.MOST_LINES),
        )
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{'The driver' if rank == 'driver' else f'Rank {rank}'} has written no log yet."
        ) from error
    return Answer(found)


def system(request: Request) -> Response:
    """Names of machine metrics: throughput, memory, energy; per node if their names contain it."""
    state = state_of(request)
    row, _ = state.run(request)
    groups = details.metrics_by_prefix(state.connection, row["key"])
    names = [name for prefix in ("perf", "memory", "system", "gpu", "energy") for name in groups.get(prefix, [])]
    nodes: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        nodes.setdefault(parts[1] if len(parts) > 2 else "", []).append(name)
    return Answer({"series": names, "nodes": nodes})


def series(request: Request) -> Response:
    """Curves."""
    state = state_of(request)
    began = time.perf_counter()
    keys = state.keys(request)
    metrics = listed(request, "metrics", MOST_METRICS_AT_ONCE)
    if len(keys) * len(metrics) > MOST_SERIES:
        raise BadRequestError(f"{len(keys) * len(metrics)} curves are too many; at most {MOST_SERIES}", "metrics")
    axis = axis_of(request)
    points = integer(request, "points", 1500, 2, MOST_POINTS)
    smooth = min(max(real(request, "smooth") or 0.0, 0.0), 0.9999)
    begin, end = real(request, "from"), real(request, "to")
    found = []
    for run_id, key in keys.items():
        for metric in metrics:
            curve = state.reader.curve(state.connection, key, metric, axis)
            if not curve.x.size:
                continue
            thin = chart(curve, points, smooth, begin, end)
            y = numbers(thin.y, _DIGITS)
            low = y if thin.raw and smooth == 0 else numbers(thin.minimum, _DIGITS)
            high = low if thin.raw else numbers(thin.maximum, _DIGITS)
            found.append(
                {"run": run_id, "metric": metric, "x": _axis_numbers(thin.x), "min": low, "max": high, "y": y}
                | {"raw": thin.raw, "points": int(curve.x.size), "cursor": curve.rows}
            )
    answer = Answer({"series": found})
    answer.headers["server-timing"] = f"series;dur={(time.perf_counter() - began) * 1000:.1f}"
    return answer


def axis_of(request: Request) -> str:
    """The requested x axis."""
    axis = request.query_params.get("x", "step")
    if axis not in AXES:
        raise BadRequestError(f"x is {axis[:50]!r}; it is one of {', '.join(AXES)}", "x")
    return axis


def _axis_numbers(x: Any) -> list[Any]:
    """Steps and tokens as integers, which are shorter."""
    return [int(value) if value.is_integer() else value for value in x.tolist()]


def compare(request: Request) -> Response:
    """Several runs side by side."""
    state = state_of(request)
    return Answer(details.compare(state.connection, state.keys(request)))


def export_csv(request: Request) -> Response:
    """Metrics of a run as CSV: one line per step, with the recorded values."""
    state = state_of(request)
    row = state.row(request.query_params.get("run", ""))
    groups = details.metrics_by_prefix(state.connection, row["key"])
    known = [name for names in groups.values() for name in names]
    wanted = listed(request, "metrics", 2000) or known
    names = [name for name in wanted if name in known]
    curves = {name: state.reader.curve(state.connection, row["key"], name, "step") for name in names}
    columns = {name: dict(zip(one.x.tolist(), one.y.tolist(), strict=True)) for name, one in curves.items()}
    steps = sorted({step for column in columns.values() for step in column})
    headers = {"content-disposition": f'attachment; filename="{_file_name(row["id"])}.csv"'}
    return StreamingResponse(_csv_lines(steps, columns), media_type="text/csv; charset=utf-8", headers=headers)


def _csv_lines(steps: list[float], columns: dict[str, dict[float, float]]) -> Iterator[str]:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    # A name that a spreadsheet would interpret as a formula is escaped as text.
    writer.writerow(["step", *(f"'{name}" if name[:1] in "=+-@" else name for name in columns)])
    for index, step in enumerate(steps):
        cells = (column.get(step) for column in columns.values())
        writer.writerow(
            [int(step), *("" if cell is None else "NaN" if math.isnan(cell) else repr(cell) for cell in cells)]
        )
        if index % 1000 == 999:
            yield text.getvalue()
            text.seek(0)
            text.truncate()
    yield text.getvalue()


def _file_name(text: str) -> str:
    return "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in text)[:120]


def report(request: Request) -> Response:
    """Runs as a single self-contained HTML file."""
    state = state_of(request)
    keys = state.keys(request, most=50)
    if not keys:
        raise NotFoundError("None of these runs is there.")
    name = _file_name("-".join(list(keys)[:2]))
    headers = {"content-disposition": f'attachment; filename="{name}.html"'}
    text = html_report(state.connection, state.reader, state.index.runs_dir, keys)
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)
