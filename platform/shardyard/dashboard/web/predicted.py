"""What the plan of a run predicted beside what the run measured lately, for its page."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import TypedDict

import numpy as np

from shardyard.dashboard.charts.columns import Floats
from shardyard.tracking.metrics import record

# As many of the newest records tell the speed; chunks of the index hold some each.
_RECENT = 200
_CHUNKS = 8
_SPEEDS = {
    "tokens_per_second": record.TOKENS_PER_SECOND,
    "step_seconds": record.STEP_SECONDS,
    "mfu": record.MFU,
}


class Beside(TypedDict):
    """One quantity of a run. `difference`: measured over predicted, less one; None if they cannot be compared.

    what: `tokens_per_second`, `step_seconds`, `mfu` or `memory_bytes` (of a rank). measured: the median of the newest
    records, of memory the largest; None before the first. resident: whether memory is that of the whole process,
    measured where there is no GPU, while a prediction has no more than the tensors of a step.
    """

    what: str
    measured: float | None
    predicted: float | None
    difference: float | None
    resident: bool


def beside_predicted(connection: sqlite3.Connection, key: int, info: Mapping[str, object]) -> list[Beside]:
    """The quantities that the plan of a run predicted; empty for runs of versions that recorded none."""
    told = info.get("predicted")
    if not isinstance(told, Mapping):
        return []
    found = []
    for what, metric in _SPEEDS.items():
        if (expected := _number(told.get(what))) is not None:
            values = _newest(connection, key, metric)
            found.append(_beside(what, float(np.median(values)) if values.size else None, expected))
    if (expected := _number(told.get("device_bytes"))) is not None:
        peak = _most(connection, key, record.PEAK_ALLOCATED_BYTES)
        resident = None if peak is not None else _most(connection, key, record.RSS_BYTES)
        one = _beside("memory_bytes", peak, expected)
        found.append(one if resident is None else {**one, "measured": resident, "resident": True})
    return found


def _beside(what: str, measured: float | None, expected: float) -> Beside:
    difference = None if measured is None or expected == 0 else measured / expected - 1
    return {"what": what, "measured": measured, "predicted": expected, "difference": difference, "resident": False}


def _newest(connection: sqlite3.Connection, key: int, metric: str) -> Floats:
    """The newest finite values of a metric."""
    blobs = connection.execute(
        "SELECT data FROM chunks WHERE run = ? AND name = ? ORDER BY first DESC LIMIT ?", (key, metric, _CHUNKS)
    ).fetchall()
    values = np.frombuffer(b"".join(blob[0] for blob in reversed(blobs)), np.float64)[-_RECENT:]
    return values[np.isfinite(values)]


def _most(connection: sqlite3.Connection, key: int, metric: str) -> float | None:
    row = connection.execute("SELECT max FROM metrics WHERE run = ? AND name = ?", (key, metric)).fetchone()
    return None if row is None else _number(row[0])


def _number(value: object) -> float | None:
    """A finite number of run.json or the index, which others may have written."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return float(value)
