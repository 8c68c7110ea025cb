"""Curves for a chart: read from the index, mapped to an x axis, smoothed, and downsampled so that no spike is lost."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np

from shardyard.dashboard.charts.columns import Floats, Positions, positions_of
from shardyard.dashboard.charts.smoothing import smoothed
from shardyard.planning.stages import milestones
from shardyard.tracking.metrics.record import TRAIN_TOKENS

AXES = ("step", "tokens", "time", "flops")
MOST_POINTS = 20_000
# Cached columns, so that redrawing a chart is faster than the first time.
_KEPT_BYTES = 128 * 1024**2


@dataclass(frozen=True)
class Curve:
    """A metric of a run over an ascending x axis. `rows` is the number of lines of metrics.jsonl that it covers."""

    x: Floats
    y: Floats
    rows: int


@dataclass(frozen=True)
class Thinned:
    """A downsampled curve of up to about twice the requested points. One-point buckets have min = max = its value."""

    x: Floats
    minimum: Floats
    maximum: Floats
    y: Floats
    raw: bool


class Reader:
    """Curves from the index. The most recently used columns are cached in memory, up to a limit."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[tuple[int, str], tuple[str, Floats, Positions | tuple[int, int]]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def curve(self, connection: sqlite3.Connection, key: int, metric: str, axis: str, since: int = 0) -> Curve:
        """One metric over `axis`; if a step was repeated after a restart, the later value counts.

        Args:
            since: only rows of metrics.jsonl from this one on.
        """
        run = connection.execute("SELECT rows, info, metrics_head FROM runs WHERE key = ?", (key,)).fetchone()
        if run is None:
            return Curve(np.empty(0), np.empty(0), 0)
        rows, stamp = int(run[0]), f"{run[0]}:{run[2]}"
        values, where = self._column(connection, key, metric, stamp, since)
        if not values.size:
            return Curve(values, values, rows)
        steps = self._at(connection, key, "step", stamp, where, since)
        x = self._axis(connection, key, axis, stamp, where, steps, since, run[1])
        good = np.isfinite(x) & np.isfinite(steps)
        if not good.all():
            steps, x, values = steps[good], x[good], values[good]
        if (np.diff(steps) <= 0).any():
            # The last record of each step: the first in reversed order.
            _, first = np.unique(steps[::-1], return_index=True)
            chosen = steps.size - 1 - first
            x, values = x[chosen], values[chosen]
        if x.size > 1 and (np.diff(x) < 0).any():
            order = np.argsort(x, kind="stable")
            x, values = x[order], values[order]
        return Curve(x, values, rows)

    def _axis(
        self,
        connection: sqlite3.Connection,
        key: int,
        axis: str,
        stamp: str,
        where: Positions,
        steps: Floats,
        since: int,
        info: str,
    ) -> Floats:
        if axis == "step":
            return steps
        if axis == "time":
            return self._at(connection, key, "time", stamp, where, since)
        plan = _plan(info)
        ends = milestones(plan)
        tokens = self._at(connection, key, TRAIN_TOKENS, stamp, where, since)
        a_step = plan.get("tokens_per_step")
        if isinstance(a_step, int | float):
            # Evaluation lines have no number of tokens.
            planned = steps * a_step if ends is None else np.interp(steps, ends.steps, ends.tokens)
            tokens = np.where(np.isnan(tokens), planned, tokens)
        if axis == "tokens":
            return tokens
        if ends is not None:
            return np.interp(tokens, ends.tokens, ends.flops)
        a_token = plan.get("flops_per_token")
        return tokens * a_token if isinstance(a_token, int | float) else np.full_like(tokens, np.nan)

    def _at(
        self, connection: sqlite3.Connection, key: int, name: str, stamp: str, where: Positions, since: int
    ) -> Floats:
        """Values of another metric in the same rows; NaN where it is missing."""
        values, places = self._column(connection, key, name, stamp, since)
        if places.size == where.size and (places == where).all():
            return values
        if places.size and where.size and _is_dense(places) and places[0] <= where[0] and where[-1] <= places[-1]:
            # Every row has a value, as for `step`, so the index is known without a search.
            first = int(places[0])
            return (
                values[int(where[0]) - first : int(where[-1]) - first + 1]
                if _is_dense(where)
                else values[where - first]
            )
        found = np.full(where.size, np.nan)
        if places.size:
            index = np.minimum(np.searchsorted(places, where), places.size - 1)
            same = places[index] == where
            found[same] = values[index[same]]
        return found

    def _column(
        self, connection: sqlite3.Connection, key: int, name: str, stamp: str, since: int
    ) -> tuple[Floats, Positions]:
        if since <= 0:
            with self._lock:
                kept = self._kept.get((key, name))
                if kept is not None and kept[0] == stamp:
                    self._kept.move_to_end((key, name))
                    return kept[1], kept[2] if isinstance(kept[2], np.ndarray) else np.arange(*kept[2])
        chunks = connection.execute(
            "SELECT first, size, positions, data FROM chunks WHERE run = :run AND name = :name AND first >= COALESCE("
            "(SELECT MAX(first) FROM chunks WHERE run = :run AND name = :name AND first <= :since), 0) ORDER BY first",
            {"run": key, "name": name, "since": since},
        ).fetchall()
        where = _joined([positions_of(*chunk[:3]) for chunk in chunks], np.int64)
        values = _joined([np.frombuffer(chunk[3], np.float64) for chunk in chunks], np.float64)
        if since > 0:
            later = where >= since
            return values[later], where[later]
        self._keep((key, name), stamp, values, where)
        return values, where

    def _keep(self, place: tuple[int, str], stamp: str, values: Floats, where: Positions) -> None:
        # Of consecutive rows only the bounds are cached: recomputing is faster.
        rows = (int(where[0]), int(where[-1]) + 1) if where.size and _is_dense(where) else where
        with self._lock:
            old = self._kept.pop(place, None)
            self._bytes += _size(values, rows) - (_size(old[1], old[2]) if old else 0)
            self._kept[place] = (stamp, values, rows)
            while self._bytes > self._kept_bytes and self._kept:
                _, (_, gone, places) = self._kept.popitem(last=False)
                self._bytes -= _size(gone, places)


def _is_dense(rows: Positions) -> bool:
    return int(rows[-1] - rows[0]) + 1 == rows.size


def _size(values: Floats, rows: Positions | tuple[int, int]) -> int:
    return values.nbytes + (rows.nbytes if isinstance(rows, np.ndarray) else 0)


def _joined(parts: list[Any], kind: Any) -> Any:
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, kind)


def _plan(info: str) -> dict[str, object]:
    plan = json.loads(info).get("plan")
    return plan if isinstance(plan, dict) else {}


def within(curve: Curve, begin: float | None, end: float | None) -> Curve:
    """The part of a curve between two x, with one more point on each side so that its lines reach the borders."""
    first = 0 if begin is None else max(0, int(np.searchsorted(curve.x, begin)) - 1)
    last = curve.x.size if end is None else int(np.searchsorted(curve.x, end, side="right")) + 1
    return Curve(curve.x[first:last], curve.y[first:last], curve.rows)


def chart(curve: Curve, points: int, smooth: float, begin: float | None = None, end: float | None = None) -> Thinned:
    """A curve for a chart: smoothed as a whole, cut to the visible part, downsampled."""
    even = smoothed(curve.x, curve.y, smooth)
    part = within(curve, begin, end)
    even_part = within(Curve(curve.x, even, curve.rows), begin, end).y
    return thinned(part.x, part.y, even_part, points)


def thinned(x: Floats, y: Floats, even: Floats, points: int) -> Thinned:
    """Downsample to buckets of equally many consecutive points. min and max are over the bucket, so that a spike of one
    point remains; x and `even`, the smoothed y, are from its last point. A bucket without a finite y has NaN."""
    size = -(-x.size // max(1, points))
    if size <= 1:
        return Thinned(x, y, y, even, True)
    starts = np.arange(0, x.size, size)
    lasts = np.append(starts[1:], x.size) - 1
    lowest = np.fmin.reduceat(y, starts)
    highest = np.fmax.reduceat(y, starts)
    return Thinned(x[lasts], lowest, highest, even[lasts], False)
