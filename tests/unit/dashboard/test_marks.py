"""Marks on curves: what happened stands where the run was, on every x axis, and spikes are found."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from shardyard.dashboard.charts.marks import MARKED, spikes
from support.dash_cases import served, write_run
from support.module_graph import PACKAGE

# Times are 1000 + step, tokens 10 × step; the attempt that began the run is no mark, and nobody knows when `odd` was.
EVENTS: list[dict[str, Any]] = [
    {"kind": "attempt", "time": 1000.5, "number": 1, "resumed_step": None},
    {"kind": "checkpoint", "time": 1020.1, "step": 20},
    {"kind": "evaluation", "time": 1020.2, "step": 20},
    {"kind": "stage", "time": 1022, "step": 22, "number": 2, "name": "long", "text": "rows of 64 tokens"},
    {"kind": "anomaly", "time": 1030, "step": 23, "what": "nan", "signal": "loss", "value": "nan", "action": "skip"},
    {"kind": "replicas_differ", "time": 1030, "step": 24, "ranks": [1]},
    {"kind": "hang", "time": 1025.2, "step": 25, "ranks": [1]},
    {"kind": "failure", "time": 1025.5, "message": "rank 1 died"},
    {"kind": "attempt", "time": 1026, "number": 2, "resumed_step": 20},
    {"kind": "alert"},
    {"kind": "failure", "time": True},
]


@pytest.mark.parametrize(("axis", "unit"), [("step", 1), ("tokens", 10), ("flops", 60), ("time", 1)])
def test_events_stand_where_the_run_was(tmp_path: Path, axis: str, unit: int) -> None:
    losses = [2.0] * 80
    losses[59] = 9.0
    folder = write_run(tmp_path / "runs", "one-1", losses=losses)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
    with served(tmp_path / "runs", tmp_path / "cache") as client:
        found = client.get("/api/runs/one-1/marks", params={"x": axis}).json()["marks"]
        assert client.get("/api/runs/one-1/marks", params={"x": "mood"}).json()["field"] == "x"
    assert [(mark["kind"], mark["step"]) for mark in found] == [
        ("checkpoint", 20),
        ("attempt", 20),
        ("stage", 22),
        ("anomaly", 23),
        ("replicas_differ", 24),
        ("hang", 25),
        ("failure", 25),
        ("spike", 60),
    ]
    before = 1000 if axis == "time" else 0
    assert [mark["x"] for mark in found] == [before + unit * mark["step"] for mark in found]


def test_the_page_draws_each_kind_of_mark() -> None:
    script = (PACKAGE / "dashboard/static/charts/curve_traces.js").read_text(encoding="utf-8")
    (drawn,) = re.findall(r"MARKS = \{\n(.*?)\n\};", script, flags=re.DOTALL)
    kinds = {event().kind for event in get_args(MARKED)}
    assert set(re.findall(r"^  (\w+):", drawn, flags=re.MULTILINE)) == kinds | {"spike"}


def test_a_run_without_losses_has_no_marks(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "one-1", losses=[])
    with served(tmp_path / "runs", tmp_path / "cache") as client:
        assert client.get("/api/runs/one-1/marks").json() == {"marks": []}


def test_spikes_are_over_twice_the_median_before_and_count_once() -> None:
    values = np.full(400, 3.0)
    values[[99, 100, 101]] = 7.0
    values[200] = 5.9
    values[300] = math.nan
    assert spikes(values) == [99, 300]
    assert spikes(values[:50]) == []
    assert spikes(-values[:90]) == []
