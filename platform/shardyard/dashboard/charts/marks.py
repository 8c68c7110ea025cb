"""Marks on the x axis of a run's curves: restarts, failures, checkpoints, stages, anomalies and spikes of the loss."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from shardyard.dashboard.charts.columns import Floats
from shardyard.dashboard.charts.series import Reader
from shardyard.tracking.run.events import (
    AnomalyFound,
    Attempt,
    AttemptFailed,
    CheckpointFailed,
    CheckpointSaved,
    Event,
    Hang,
    ReplicasDiffer,
    StageBegun,
)

LOSS = "train/loss"
SPIKE_WINDOW = 50
SPIKE_FACTOR = 2.0
MOST_SPIKES = 100
# Maximum number of records searched for spikes; in a longer run, the last ones.
_MOST_RECORDS = 200_000
_AT_A_STEP = AnomalyFound | CheckpointFailed | CheckpointSaved | Hang | ReplicasDiffer | StageBegun
MARKED = Attempt | AttemptFailed | _AT_A_STEP


class Place(TypedDict):
    """A record: its step, its time in seconds since 1970, and its position on the chosen axis."""

    step: int
    time: float
    x: float


class Mark(Place):
    """A mark: the kind of an event, or `spike`."""

    kind: str


def marks(reader: Reader, connection: sqlite3.Connection, key: int, events: Iterable[Event], axis: str) -> list[Mark]:
    """The marks with `kind`, `step`, `time` and `x`, the position on `axis`, ordered by x.

    Events without a step are placed by their time. The first attempt is not a mark: it is the beginning of the run.
    """
    steps = reader.curve(connection, key, LOSS, "step")
    if not steps.x.size:
        return []
    times = reader.curve(connection, key, LOSS, "time")
    places = steps if axis == "step" else reader.curve(connection, key, LOSS, axis)
    if not steps.x.size == times.x.size == places.x.size:
        return []
    found: list[Mark] = []
    for event in events:
        if not isinstance(event, MARKED) or (isinstance(event, Attempt) and event.number == 1):
            continue
        at = _record_of(event, steps.x, times.x)
        if at is not None:
            found.append({"kind": event.kind, **_place(at, steps.x, times.x, places.x)})
    found += [{"kind": "spike", **_place(at, steps.x, times.x, places.x)} for at in spikes(steps.y)]
    return sorted(found, key=lambda mark: mark["x"])


def _record_of(event: Event, steps: Floats, times: Floats) -> int | None:
    """The record of an event: the last one that is not after it."""
    step = event.resumed_step if isinstance(event, Attempt) else None
    step = event.step if isinstance(event, _AT_A_STEP) else step
    for values, known in ((steps, step or None), (times, event.time)):
        if known is not None:
            return max(0, int(np.searchsorted(values, known, side="right")) - 1)
    return None


def _place(at: int, steps: Floats, times: Floats, places: Floats) -> Place:
    return {"step": int(steps[at]), "time": float(times[at]), "x": float(places[at])}


def spikes(values: Floats) -> list[int]:
    """Indices of values above twice the median of the 50 previous records, or NaN; only the first of neighbours."""
    skipped = max(0, values.size - _MOST_RECORDS)
    values = values[skipped:]
    if values.size <= SPIKE_WINDOW:
        return []
    medians = np.median(sliding_window_view(values, SPIKE_WINDOW)[:-1], axis=1)
    rest = values[SPIKE_WINDOW:]
    high = ~np.isfinite(rest) | ((medians > 0) & (rest > SPIKE_FACTOR * medians))
    first = np.flatnonzero(high & ~np.concatenate(([False], high[:-1])))
    return [int(at) + SPIKE_WINDOW + skipped for at in first[-MOST_SPIKES:]]
