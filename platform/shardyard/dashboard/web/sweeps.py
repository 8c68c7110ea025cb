"""Sweeps for the page: trials with parameters and results, and the scaling law if one fits."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from starlette.requests import Request
from starlette.responses import Response

from shardyard.dashboard.index.files import names_below, read_below
from shardyard.dashboard.web.answers import Answer, NotFoundError
from shardyard.dashboard.web.api import State, state_of
from shardyard.dashboard.web.details import without_secrets
from shardyard.errors import ShardyardError
from shardyard.planning.stages import milestones

MOST_TRIALS = 5000
_MOST_BYTES = 16 * 1024**2


class Standing(TypedDict):
    """The progress of a sweep. trials: their number; best: the objective's value of `best_run`."""

    trials: int
    finished: int
    metric: str
    mode: str
    best: float | None
    best_run: str | None


class SweepRow(Standing):
    """A sweep in the list, from its file."""

    id: str
    name: object
    state: object
    created: object
    ended: object
    recipe: object


class DamagedSweep(TypedDict):
    """A sweep whose file cannot be read."""

    id: str
    name: str
    state: str
    problem: str


class TrialPayload(TypedDict):
    """A trial, from its record and its run in the index. metric: value of the objective."""

    trial: object
    run: str | None
    parameters: dict[str, object]
    metric: float | None
    state: str
    step: int
    tokens: float
    model_parameters: object
    flops: object
    error: object


def list_all(request: Request) -> Response:
    """All sweeps, newest first."""
    state = state_of(request)
    found: list[SweepRow | DamagedSweep] = []
    for name in names_below(state.index.runs_dir, "sweeps"):
        info = _info(state.index.runs_dir, name)
        if info is None:
            found.append({"id": name, "name": name, "state": "damaged", "problem": "sweep.json cannot be read"})
            continue
        found.append(
            {
                "id": name,
                "name": info.get("name"),
                "state": info.get("state"),
                "created": info.get("created"),
                "ended": info.get("ended"),
                "recipe": info.get("recipe"),
                **_standing(state, name, info),
            }
        )
    return Answer(sorted(found, key=lambda one: (str(one.get("created") or ""), str(one["id"])), reverse=True))


def show(request: Request) -> Response:
    """One sweep."""
    state, name = state_of(request), request.path_params["id"]
    runs_dir = state.index.runs_dir
    info = _info(runs_dir, name) if name in names_below(runs_dir, "sweeps") else None
    if info is None:
        raise NotFoundError(f"There is no sweep {name[:100]!r} that can be read.")
    metric, mode = _objective(info)
    trials = [_trial(state, record, metric) for record in _records(runs_dir, name)]
    best = _best(trials, mode)
    law = _section(info, "sweep").get("scaling_law") and request.query_params.get("fit") == "1"
    return Answer(
        {
            "id": name,
            "name": info.get("name"),
            "state": info.get("state"),
            "recipe": info.get("recipe"),
            "metric": metric,
            "mode": mode,
            "parameters": sorted({key for trial in trials for key in trial["parameters"]}),
            "trials": trials,
            "best": best["trial"] if best is not None else None,
            "prediction": without_secrets(info.get("prediction")),
            "fit": _fit(runs_dir, name, json.dumps(trials)) if law else None,
        }
    )


def _section(known: Mapping[str, object], name: str) -> dict[str, object]:
    """A nested object of untrusted JSON; empty if it is not an object."""
    found = known.get(name)
    return found if isinstance(found, dict) else {}


def _objective(info: Mapping[str, object]) -> tuple[str, str]:
    """The metric of the objective, and whether it is minimised or maximised."""
    found = _section(_section(info, "sweep"), "objective")
    return str(found.get("metric") or "eval/validation/loss"), str(found.get("mode") or "min")


def _standing(state: State, name: str, info: Mapping[str, object]) -> Standing:
    """The progress of a sweep, and its best trial so far."""
    metric, mode = _objective(info)
    trials = [_trial(state, record, metric) for record in _records(state.index.runs_dir, name)]
    best, listed = _best(trials, mode), info.get("trials")
    return {
        "trials": max(len(trials), len(listed) if isinstance(listed, list) else 0),
        "finished": sum(trial["state"] in ("finished", "stopped early") for trial in trials),
        "metric": metric,
        "mode": mode,
        "best": best["metric"] if best is not None else None,
        "best_run": best["run"] if best is not None else None,
    }


def _info(runs_dir: Path, name: str) -> dict[str, object] | None:
    try:
        found = json.loads(read_below(runs_dir, "sweeps", name, "sweep.json", most=_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _records(runs_dir: Path, name: str) -> list[dict[str, object]]:
    found = []
    for file in names_below(runs_dir, "sweeps", name, "trials")[:MOST_TRIALS]:
        try:
            record = json.loads(read_below(runs_dir, "sweeps", name, "trials", file, most=1024**2))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("parameters") or {}, dict):
            found.append(record)
    return found


def _trial(state: State, record: Mapping[str, object], metric: str) -> TrialPayload:
    """A trial, from its record and the index."""
    run = record.get("run")
    key = state.index.key_of(run) if isinstance(run, str) else None
    row: sqlite3.Row | None = None
    value = None
    if key is not None:
        row = state.connection.execute("SELECT * FROM runs WHERE key = ?", (key,)).fetchone()
        found = state.connection.execute(
            "SELECT last FROM metrics WHERE run = ? AND name = ?", (key, metric)
        ).fetchone()
        value = found[0] if found is not None else None
    plan = _section(json.loads(row["info"]), "plan") if row is not None else {}
    ended = "stopped early" if record.get("stopped") and (row is None or row["state"] != "finished") else None
    return {
        "trial": record.get("trial"),
        "run": str(run) if key is not None else None,
        "parameters": _section(record, "parameters"),
        "metric": value,
        "state": ended or (row["state"] if row is not None else "failed" if record.get("error") else "waiting"),
        "step": row["step"] if row is not None else 0,
        "tokens": _tokens(plan, row["step"]) if row is not None else 0,
        "model_parameters": _section(plan, "architecture").get("parameters"),
        "flops": plan.get("flops"),
        "error": record.get("error"),
    }


def _tokens(plan: Mapping[str, object], step: int) -> float:
    """Tokens of the first steps of a run."""
    ends, a_step = milestones(plan), plan.get("tokens_per_step")
    if ends is not None:
        return ends.tokens_at(step)
    return step * a_step if isinstance(a_step, int | float) else 0


def _best(trials: Sequence[TrialPayload], mode: str) -> TrialPayload | None:
    measured = [(trial["metric"], trial) for trial in trials if trial["metric"] is not None]
    finished = [(value, trial) for value, trial in measured if trial["state"] == "finished"] or measured
    sign = -1.0 if mode == "max" else 1.0
    return min(finished, key=lambda one: sign * one[0], default=(0.0, None))[1]


@lru_cache(maxsize=32)
def _fit(runs_dir: Path, name: str, trials: str) -> dict[str, object]:
    """The scaling law if enough trials have finished; else the reason. Recomputed when `trials` changes."""
    from shardyard.launch.sweep.fit import fit_sweep
    from shardyard.launch.sweep.folder import SweepFolder

    try:
        fit = fit_sweep(SweepFolder(runs_dir / "sweeps" / name))
    except (ShardyardError, OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        return {"problem": str(error)}
    return {**fit.as_dict(), "formula": fit.law.formula()}
