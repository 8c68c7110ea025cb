"""Sweeps for the page: trials with their parameters and what they came to, and the scaling law where one fits."""

from __future__ import annotations

import json
import sqlite3
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from shardyard.dashboard.index.files import names_below, read_below
from shardyard.dashboard.web.answers import Answer, NotFoundError
from shardyard.dashboard.web.api import State, state_of
from shardyard.dashboard.web.details import without_secrets
from shardyard.errors import ShardyardError

MOST_TRIALS = 5000
_MOST_BYTES = 16 * 1024**2


def list_all(request: Request) -> Response:
    """All sweeps, the newest first."""
    state = state_of(request)
    found: list[dict[str, Any]] = []
    for name in names_below(state.index.runs_dir, "sweeps"):
        info = _info(state.index.runs_dir, name)
        if info is None:
            found.append({"id": name, "name": name, "state": "damaged", "problem": "sweep.json cannot be read"})
            continue
        shown: dict[str, Any] = {key: info.get(key) for key in ("name", "state", "created", "ended", "recipe")}
        found.append({"id": name, **shown, **_standing(state, name, info)})
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
    law = _definition(info).get("scaling_law") and request.query_params.get("fit") == "1"
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


def _definition(info: dict[str, Any]) -> dict[str, Any]:
    sweep = info.get("sweep")
    return sweep if isinstance(sweep, dict) else {}


def _objective(info: dict[str, Any]) -> tuple[str, str]:
    """The metric that is sought, and whether its least or its greatest value."""
    objective = _definition(info).get("objective")
    found = objective if isinstance(objective, dict) else {}
    return str(found.get("metric") or "eval/validation/loss"), str(found.get("mode") or "min")


def _standing(state: State, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """How far a sweep is, and its best trial so far."""
    metric, mode = _objective(info)
    trials = [_trial(state, record, metric) for record in _records(state.index.runs_dir, name)]
    best = _best(trials, mode)
    return {
        "trials": max(len(trials), len(info.get("trials") or [])),
        "finished": sum(trial["state"] in ("finished", "stopped early") for trial in trials),
        "metric": metric,
        "mode": mode,
        "best": best["metric"] if best is not None else None,
        "best_run": best["run"] if best is not None else None,
    }


def _info(runs_dir: Path, name: str) -> dict[str, Any] | None:
    try:
        found = json.loads(read_below(runs_dir, "sweeps", name, "sweep.json", most=_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _records(runs_dir: Path, name: str) -> list[dict[str, Any]]:
    found = []
    for file in names_below(runs_dir, "sweeps", name, "trials")[:MOST_TRIALS]:
        try:
            record = json.loads(read_below(runs_dir, "sweeps", name, "trials", file, most=1024**2))
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(record, dict) and isinstance(record.get("parameters") or {}, dict):
            found.append(record)
    return found


def _trial(state: State, record: dict[str, Any], metric: str) -> dict[str, Any]:
    """A trial from what is kept of it and from the index."""
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
    plan = json.loads(row["info"]).get("plan") if row is not None else None
    sizes = plan.get("architecture") if isinstance(plan, dict) else None
    ended = "stopped early" if record.get("stopped") and (row is None or row["state"] != "finished") else None
    return {
        "trial": record.get("trial"),
        "run": run if key is not None else None,
        "parameters": record.get("parameters") or {},
        "metric": value,
        "state": ended or (row["state"] if row is not None else "failed" if record.get("error") else "waiting"),
        "step": row["step"] if row is not None else 0,
        "tokens": row["step"] * (plan.get("tokens_per_step") or 0) if row is not None and isinstance(plan, dict) else 0,
        "model_parameters": sizes.get("parameters") if isinstance(sizes, dict) else None,
        "flops": plan.get("flops") if isinstance(plan, dict) else None,
        "error": record.get("error"),
    }


def _best(trials: list[dict[str, Any]], mode: str) -> dict[str, Any] | None:
    measured = [trial for trial in trials if isinstance(trial["metric"], int | float)]
    finished = [trial for trial in measured if trial["state"] == "finished"] or measured
    sign = -1.0 if mode == "max" else 1.0
    return min(finished, key=lambda trial: sign * trial["metric"], default=None)


@lru_cache(maxsize=32)
def _fit(runs_dir: Path, name: str, trials: str) -> dict[str, Any]:
    """The scaling law, where enough trials have finished; else why there is none. Made anew when `trials` changed."""
    from shardyard.launch.sweep.fit import fit_sweep
    from shardyard.launch.sweep.folder import SweepFolder

    try:
        fit = fit_sweep(SweepFolder(runs_dir / "sweeps" / name))
    except (ShardyardError, OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        return {"problem": str(error)}
    return {**fit.as_dict(), "formula": fit.law.formula()}
