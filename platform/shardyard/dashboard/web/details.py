"""The details of one run other than its curves: progress, recipe, checkpoints, events, samples, experts."""

from __future__ import annotations

import json
import os
import re
import shlex
import sqlite3
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from shardyard.dashboard.charts.columns import TABLES, Floats
from shardyard.dashboard.index.files import (
    json_lines,
    names_below,
    opened_below,
    pread,
    read_below,
    stat_below,
    text_below,
)
from shardyard.dashboard.index.listing import RunRow
from shardyard.dashboard.web.logs import ranks_of
from shardyard.dashboard.web.predicted import beside_predicted
from shardyard.dashboard.web.profiled import profiled
from shardyard.launch.describe import describe
from shardyard.objectives.registry import OBJECTIVES, objective_spec
from shardyard.planning.plan_text import from_dict, rows
from shardyard.redaction import is_secret_name, scrub
from shardyard.tracking.metrics import record
from shardyard.tracking.run.events import Event, WandbStatus, event_of

MOST_RECORDS = 2000
MOST_BYTES = 4 * 1024**2
_MOST_TABLE_BYTES = 256 * 1024**2
_MOST_MANIFEST_BYTES = 16 * 1024**2
_PACE_SECONDS = 600
_DERIVED = re.compile(r"^# (?P<what>[^:]+(?:: [a-z_ ]+)?): (?P<value>.*?)(?:  \((?P<why>.*)\))?$")
_TABLE = re.compile(r"moe/tokens/layer_(\d+)/expert_(\d+)$")


class Progress(TypedDict):
    """The progress of a run, its speed, and the time left at this pace. last_time: of its newest record."""

    step: int
    total_steps: int | None
    seconds_left: float | None
    tokens_per_second: float | None
    mfu: float | None
    step_seconds: float | None
    tokens: float | None
    last_time: float | None


class CheckpointState(TypedDict):
    """The state of a checkpoint by its manifest; why: its defect. bytes: None if it has no manifest."""

    bytes: int | None
    state: str
    created: float | None
    world_size: NotRequired[int | None]
    why: NotRequired[str]


class CheckpointPayload(CheckpointState):
    """A checkpoint."""

    step: int
    name: str


class RecipeTexts(TypedDict):
    """The recipe of a run as given and resolved, derived values (name, value, why), and its origin."""

    given: str
    resolved: str
    derived: list[list[str]]
    provenance: dict[str, object]


class ExpertTable(TypedDict):
    """Tokens per expert in each of `layers`; steps: those with a table."""

    layers: list[int]
    steps: list[int]
    table: list[list[float | None]]


class FieldDifference(TypedDict):
    """A recipe field that differs, and its value per run."""

    path: str
    values: dict[str, object]


class ComparedRun(TypedDict):
    """The results of a compared run: newest values of its metrics, and best values of its evaluations."""

    run: str
    name: str | None
    state: str
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    problem: str | None
    info: dict[str, object]
    groups: dict[str, list[str]]
    metrics: dict[str, float | None]
    best: dict[str, float | None]


class Band(TypedDict):
    """Runs that differ only in their seeds."""

    runs: list[str]


class Comparison(TypedDict):
    """Runs side by side."""

    recipe_diff: list[FieldDifference]
    results: list[ComparedRun]
    bands: list[Band]


def without_secrets(value: Any, name: str = "") -> Any:
    """Plain data without values that look like secrets by their name or form."""
    if isinstance(value, dict):
        return {
            key: "(hidden)" if is_secret_name(str(key)) and isinstance(item, str) else without_secrets(item, str(key))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(item, name) for item in value]
    return scrub(value) if isinstance(value, str) else value


def info_of(row: sqlite3.Row) -> dict[str, object]:
    """The contents of run.json as last read by the index."""
    found = json.loads(row["info"])
    assert isinstance(found, dict)
    return found


def metrics_by_prefix(connection: sqlite3.Connection, key: int) -> dict[str, list[str]]:
    """Names of a run's metrics, grouped by the part before the first slash."""
    groups: dict[str, list[str]] = defaultdict(list)
    for (name,) in connection.execute("SELECT name FROM metrics WHERE run = ? ORDER BY name", (key,)):
        if name not in ("step", "time"):
            groups[name.partition("/")[0] if "/" in name else "other"].append(name)
    return dict(groups)


def progress(connection: sqlite3.Connection, row: sqlite3.Row) -> Progress:
    """The progress of a run, its speed, and the time left at this pace."""
    newest = dict(
        connection.execute(
            "SELECT name, last FROM metrics WHERE run = ? AND name IN (?, ?, ?, ?)",
            (row["key"], record.TOKENS_PER_SECOND, record.MFU, record.STEP_SECONDS, record.TRAIN_TOKENS),
        )
    )
    total, step = row["total_steps"], row["step"]
    pace = _seconds_a_step(connection, row["key"])
    live = row["state"] == "running"
    return {
        "step": step,
        "total_steps": total,
        "seconds_left": pace * max(0, total - step) if pace is not None and total and live else None,
        "tokens_per_second": newest.get(record.TOKENS_PER_SECOND),
        "mfu": newest.get(record.MFU),
        "step_seconds": newest.get(record.STEP_SECONDS),
        "tokens": newest.get(record.TRAIN_TOKENS),
        "last_time": row["last_time"],
    }


def _seconds_a_step(connection: sqlite3.Connection, key: int) -> float | None:
    """Wall time per step over the newest records, including evaluations and checkpoints."""
    ends: dict[str, Floats] = {}
    for name in ("step", "time"):
        blobs = connection.execute(
            "SELECT data FROM chunks WHERE run = ? AND name = ? ORDER BY first DESC LIMIT 8", (key, name)
        ).fetchall()
        ends[name] = np.frombuffer(b"".join(blob[0] for blob in reversed(blobs)), np.float64)[-200:]
    steps, times = ends["step"], ends["time"]
    if steps.size < 2 or steps.size != times.size:
        return None
    recent = times >= times[-1] - _PACE_SECONDS
    # A restart goes back to a checkpoint; only later records determine the pace.
    back = np.flatnonzero(np.diff(steps) < 0)
    recent[: int(back[-1]) + 1 if back.size else 0] = False
    steps, times = steps[recent], times[recent]
    if steps.size < 2 or steps[-1] <= steps[0] or times[-1] <= times[0]:
        return None
    return float((times[-1] - times[0]) / (steps[-1] - steps[0]))


def checkpoints(folder: Path) -> list[CheckpointPayload]:
    """Checkpoints, oldest first, checked by their manifests and file sizes, without hashing."""
    found: list[CheckpointPayload] = []
    for name in names_below(folder, "checkpoints"):
        match = re.fullmatch(
            r"(?:(?P<damaged>damaged-)|(?P<hidden>\.))?step-(?P<step>\d{1,15})(?P<partial>\..*)?", name
        )
        if match is None:
            continue
        step = int(match["step"])
        if match["hidden"] or match["partial"]:
            found.append({"step": step, "bytes": None, "state": "partial", "created": None, "name": name})
        else:
            found.append({"step": step, "name": name, **_checkpoint(folder, name, damaged=bool(match["damaged"]))})
    return sorted(found, key=lambda one: (one["step"], one["name"]))


def _checkpoint(folder: Path, name: str, *, damaged: bool) -> CheckpointState:
    stamp = stat_below(folder, "checkpoints", name, "manifest.json")
    try:
        manifest = json.loads(read_below(folder, "checkpoints", name, "manifest.json", most=_MOST_MANIFEST_BYTES))
        sizes = {path: int(entry["size_bytes"]) for path, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "manifest.json cannot be read"
        return {"bytes": None, "state": "damaged", "created": stamp.st_mtime if stamp else None, "why": reason}
    wrong = [path for path, size in list(sizes.items())[:5000] if not _has_size(folder, name, path, size)]
    state: CheckpointState = {
        "bytes": sum(sizes.values()),
        "state": "damaged" if wrong or damaged else "whole",
        "created": stamp.st_mtime if stamp else None,
        "world_size": manifest.get("world_size"),
    }
    if wrong:
        state["why"] = f"{len(wrong)} files are missing or of another size, such as {wrong[0]}"
    return state


def _has_size(folder: Path, checkpoint: str, path: str, size: int) -> bool:
    found = stat_below(folder, "checkpoints", checkpoint, *path.split("/"))
    return found is not None and found.st_size == size


def files_of(folder: Path) -> list[dict[str, object]]:
    """The top-level files of a run folder and its logs, with sizes."""
    listed = [*((name,) for name in names_below(folder, most=500)), *(("logs", n) for n in names_below(folder, "logs"))]
    sizes = [("/".join(parts), stat_below(folder, *parts)) for parts in listed]
    return [{"name": name, "bytes": found.st_size} for name, found in sizes if found is not None]


def detail(connection: sqlite3.Connection, row: sqlite3.Row, folder: Path, summary: RunRow) -> dict[str, object]:
    """All details of a run except its curves and texts."""
    return {
        "id": row["id"],
        "info": without_secrets(info_of(row)),
        "summary": summary,
        "progress": progress(connection, row),
        "predicted": beside_predicted(connection, row["key"], info_of(row)),
        "profile": profiled(folder),
        "metrics": metrics_by_prefix(connection, row["key"]),
        "ranks": ranks_of(folder),
        "checkpoints": checkpoints(folder),
        "files": files_of(folder),
        "wandb": _wandb_link(folder),
        "commands": commands(folder, str(row["state"])),
    }


def commands(folder: Path, state: str) -> dict[str, str]:
    """Commands for a run, by purpose. The path works from any working directory and runs folder."""
    name = shlex.quote(str(folder))
    found = {"stop": f"shardyard stop {name}", "export": f"shardyard export {name}"}
    if state != "finished":
        found["resume"] = f"shardyard resume {name}"
    if objective := re.search(r"^objective: (\w+)$", text_below(folder, "resolved.yaml") or "", re.MULTILINE):
        # Only built-in ones: viewing a run imports no external code.
        generates = objective[1] in OBJECTIVES and objective_spec(objective[1]).generates
        found["try"] = f'shardyard sample {name} "your prompt"' if generates else f"shardyard eval {name}"
    return found


def _wandb_link(folder: Path) -> str | None:
    """URL of the run at W&B, as recorded by the run."""
    told = next((event for event in reversed(happened(folder)) if isinstance(event, WandbStatus)), None)
    # The page links only to http and https URLs.
    found = re.match(r"https?://[^\s\"'<>]+", told.url) if told is not None and told.url else None
    return scrub(found[0]) if found else None


def recipe(folder: Path, info: Mapping[str, object]) -> RecipeTexts:
    """The recipe as given and resolved, and derived values."""
    resolved = text_below(folder, "resolved.yaml") or ""
    body, _, derived = resolved.partition("\n# Derived:\n")
    return {
        "given": scrub(text_below(folder, "recipe.yaml") or ""),
        "resolved": scrub(body),
        "derived": without_secrets(_derived(folder, derived)),
        "provenance": without_secrets(info.get("provenance") or {}),
    }


def _derived(folder: Path, comments: str) -> list[list[str]]:
    """Derived values: name, value, why. Folders from before plan.json have them only as comments."""
    try:
        plan = from_dict(json.loads(read_below(folder, "plan.json", most=MOST_BYTES)))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        found = (_DERIVED.match(line) for line in comments.splitlines())
        return [[one["what"], one["value"], one["why"] or ""] for one in found if one]
    return [list(row) for row in rows(plan)]


def events(folder: Path, cursor: int = 0) -> dict[str, object]:
    """Events from a cursor on, with severity and text, without their tables; of a long file the last ones."""
    found, end = _records(folder, "events.jsonl", cursor)
    return {"events": [without_secrets(_shown(line)) for line in found], "cursor": end}


def _shown(line: Mapping[str, object]) -> dict[str, object]:
    event = event_of(line)
    plain = {name: value for name, value in line.items() if TABLES not in name}
    return {**plain, "severity": event.severity, "words": describe(event)}


def happened(folder: Path) -> list[Event]:
    """The events of a run; of a long file the last ones."""
    return [event_of(line) for line in _records(folder, "events.jsonl", 0)[0]]


def samples(folder: Path, cursor: int = 0) -> dict[str, object]:
    """Samples from a cursor on; of a long file the last ones."""
    found, end = _records(folder, "samples.jsonl", cursor)
    return {"samples": [without_secrets(sample) for sample in found], "cursor": end}


def _records(folder: Path, name: str, cursor: int) -> tuple[list[dict[str, object]], int]:
    try:
        with opened_below(folder, name) as descriptor:
            size = os.fstat(descriptor).st_size
            begin = max(0 if cursor > size else cursor, size - MOST_BYTES)
            data = pread(descriptor, size - begin, begin)
    except OSError:
        return [], 0
    end = data.rfind(b"\n") + 1
    return json_lines(data[:end])[-MOST_RECORDS:], begin + end


def experts(folder: Path, step: int | None = None) -> ExpertTable:
    """Tokens per expert and layer in an evaluation: that of `step`, else the newest."""
    tables: dict[int, dict[tuple[int, int], float]] = {}
    for line in _lines_with(folder, "metrics.jsonl", TABLES.encode()):
        cells = {
            (int(found[1]), int(found[2])): float(value)
            for name, value in line.items()
            if isinstance(value, int | float) and (found := _TABLE.search(name))
        }
        at = line.get("step")
        if cells and isinstance(at, int):
            tables[at] = cells
    steps = sorted(tables)
    chosen = tables.get(step if step is not None else (steps[-1] if steps else -1), {})
    layers = sorted({layer for layer, _ in chosen})
    count = 1 + max((expert for _, expert in chosen), default=-1)
    return {
        "layers": layers,
        "steps": steps,
        "table": [[chosen.get((layer, expert)) for expert in range(min(count, 4096))] for layer in layers],
    }


def _lines_with(folder: Path, name: str, words: bytes) -> list[dict[str, object]]:
    """Objects of lines that contain some bytes; files are read in pieces, whatever their length."""
    found: list[dict[str, object]] = []
    rest, position = b"", 0
    try:
        with opened_below(folder, name) as descriptor:
            while position < _MOST_TABLE_BYTES:
                block = pread(descriptor, 1 << 22, position)
                if not block:
                    break
                position += len(block)
                lines, _, rest = (rest + block).rpartition(b"\n")
                if len(rest) > MOST_BYTES:
                    rest = b""
                if words in lines:
                    found += json_lines(b"\n".join(line for line in lines.split(b"\n") if words in line))
    except OSError:
        return []
    return found[-MOST_RECORDS:]


def compare(connection: sqlite3.Connection, keys: dict[str, int]) -> Comparison:
    """Recipe fields that differ among runs, and the results of each run."""
    values: dict[str, dict[str, object]] = defaultdict(dict)
    results: list[ComparedRun] = []
    for run_id, key in keys.items():
        for path, value in connection.execute("SELECT path, value FROM fields WHERE run = ?", (key,)):
            values[path][run_id] = value
        row = connection.execute("SELECT * FROM runs WHERE key = ?", (key,)).fetchone()
        metrics = connection.execute("SELECT name, last, best FROM metrics WHERE run = ?", (key,)).fetchall()
        results.append(
            {
                "run": run_id,
                "name": row["name"],
                "state": row["state"],
                "step": row["step"],
                "total_steps": row["total_steps"],
                "loss": row["loss"],
                "eval_loss": row["eval_loss"],
                "problem": row["problem"],
                "info": _in_short(without_secrets(info_of(row))),
                "groups": metrics_by_prefix(connection, key),
                "metrics": {name: last for name, last, _ in metrics if name not in ("step", "time")},
                "best": {name: best for name, _, best in metrics if name.startswith("eval/")},
            }
        )
    differing: list[FieldDifference] = [
        {"path": path, "values": {run_id: found.get(run_id) for run_id in keys}}
        for path, found in sorted(values.items())
        if len({json.dumps(found.get(run_id)) for run_id in keys}) > 1
    ]
    return {"recipe_diff": differing, "results": results, "bands": _bands(values, keys)}


def _in_short(info: dict[str, object]) -> dict[str, object]:
    """The part of run.json that a comparison needs."""
    plan = info.get("plan")
    plan = plan if isinstance(plan, dict) else {}
    sizes = plan.get("architecture")
    sizes = sizes if isinstance(sizes, dict) else {}
    return {
        **{name: info.get(name) for name in ("name", "created", "started")},
        "plan": {
            "tokens": plan.get("tokens"),
            "architecture": {name: sizes.get(name) for name in ("parameters", "matmul_parameters")},
        },
    }


def _bands(values: dict[str, dict[str, object]], keys: dict[str, int]) -> list[Band]:
    """Groups of runs whose recipes differ only in seeds and names: their curves form one band."""
    apart = {"name", "train.seed", "description", "tracking.wandb.group"}
    groups: dict[str, list[str]] = defaultdict(list)
    for run_id in keys:
        recipe_of = {path: found[run_id] for path, found in values.items() if run_id in found and path not in apart}
        groups[json.dumps(recipe_of, sort_keys=True)].append(run_id)
    return [{"runs": runs} for runs in groups.values() if len(runs) > 1]
