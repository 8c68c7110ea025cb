"""From lines of metrics.jsonl to columns: numbers by metric, with their rows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Positions = NDArray[np.int64]

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
# One number per expert and layer: shown as a heat map, not as hundreds of curves.
TABLES = "moe/tokens/"
MOST_METRICS = 2000
MOST_NAME_CHARACTERS = 200


@dataclass
class Column:
    """Values of one metric and their rows, ascending."""

    values: list[float] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)


@dataclass
class Parsed:
    """The contents of some lines. `rows` counts JSON objects, `torn` other lines; a row without a number for a metric
    has no entry in its column."""

    rows: int
    torn: int
    columns: dict[str, Column]

    def array(self, name: str) -> tuple[Floats, Positions]:
        """Values and rows of one metric."""
        column = self.columns[name]
        return np.array(column.values, np.float64), np.array(column.rows, np.int64)


def parse(data: bytes, first_row: int = 0) -> Parsed:
    """Columns of complete lines, including `step` and `time`. A line without an integer `step` counts as torn."""
    columns: dict[str, Column] = {}
    row, torn = first_row, 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        record = _record(line)
        if record is None:
            torn += 1
            continue
        for name, value in record.items():
            number = _number(value)
            if number is None:
                continue
            column = columns.get(name)
            if column is None:
                if TABLES in name or len(columns) >= MOST_METRICS or len(name) > MOST_NAME_CHARACTERS:
                    continue
                column = columns[name] = Column()
            column.values.append(number)
            column.rows.append(row)
        row += 1
    return Parsed(row - first_row, torn, columns)


def _record(line: bytes) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or type(record.get("step")) is not int or not 0 <= record["step"] < 2**53:
        return None
    return record


def _number(value: Any) -> float | None:
    kind = type(value)
    if kind is float:
        return float(value)
    if kind is int:
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    return _NOT_FINITE.get(value) if kind is str else None


def positions_of(first: int, size: int, blob: bytes | None) -> Positions:
    """Rows of a chunk: the listed ones, else consecutive rows."""
    return np.arange(first, first + size, dtype=np.int64) if blob is None else np.frombuffer(blob, np.int64)


def average(values: Floats, weight: float, state: float, mass: float) -> tuple[float, float]:
    """Update the exponential moving average over records: new (sum, mass); the average is sum / mass.

    Only finite values count. Each record has `weight` times the weight of the next one.
    """
    finite = values[np.isfinite(values)][-2000:]
    if not finite.size:
        return state, mass
    powers = weight ** np.arange(finite.size - 1, -1, -1, dtype=np.float64)
    decay = weight**finite.size
    return float(state * decay + powers @ finite), float(mass * decay + powers.sum())
