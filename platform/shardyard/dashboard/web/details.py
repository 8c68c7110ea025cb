"""The details of one run beside its curves: progress, recipe, checkpoints, events, samples, experts."""

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
    """How far a run is, how fast it goes and when it will be done at this pace. last_time: of its newest record."""

    step: int
    total_steps: int | None
    seconds_left: float | None
    tokens_per_second: float | None
    mfu: float | None
    step_seconds: float | None
    tokens: float | None
    last_time: float | None


class CheckpointState(TypedDict):
    """What the manifest of a checkpoint says; why: what is wrong with it. bytes: None where it has no manifest."""

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
    """The recipe of a run as given and resolved, what follows from it (name, value, why), and from where it came."""

    given: str
    resolved: str
    derived: list[list[str]]
    provenance: dict[str, object]


class ExpertTable(TypedDict):
    """Tokens that each expert of each of `layers` was given; steps: those that have a table."""

    layers: list[int]
    steps: list[int]
    table: list[list[float | None]]


class FieldDifference(TypedDict):
    """A field of recipes, and its value by run."""

    path: str
    values: dict[str, object]


class ComparedRun(TypedDict):
    """What one of several runs came to: newest values of its metrics, and the best ones of its evaluations."""

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
    """Runs that differ in their seeds alone."""

    runs: list[str]


class Comparison(TypedDict):
    """Runs beside one another."""

    recipe_diff: list[FieldDifference]
    results: list[ComparedRun]
    bands: list[Band]


def without_secrets(value: Any, name: str = "") -> Any:
    """Plain data with what looks like a secret left out, by its name or its form."""
    if isinstance(value, dict):
        return {
            key: "(hidden)" if is_secret_name(str(key)) and isinstance(item, str) else without_secrets(item, str(key))
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [without_secrets(item, name) for item in value]
    return scrub(value) if isinstance(value, str) else value


def info_of(row: sqlite3.Row) -> dict[str, object]:
    """run.json, as the index last read it."""
    found = json.loads(row["info"])
    assert isinstance(found, dict)
    return found


def metrics_by_prefix(connection: sqlite3.Connection, key: int) -> dict[str, list[str]]:
    """Names of a run's metrics, by what stands before the first slash."""
    groups: dict[str, list[str]] = defaultdict(list)
    for (name,) in connection.execute("SELECT name FROM metrics WHERE run = ? ORDER BY name", (key,)):
        if name not in ("step", "time"):
            groups[name.partition("/")[0] if "/" in name else "other"].append(name)
    return dict(groups)


def progress(connection: sqlite3.Connection, row: sqlite3.Row) -> Progress:
    """How far a run is, how fast it goes and when it will be done at this pace."""
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
    """Wall time a step over the newest records, evaluations and checkpoints included."""
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
    # A restart goes back to a checkpoint; only what came after it tells the pace.
    back = np.flatnonzero(np.diff(steps) < 0)
    recent[: int(back[-1]) + 1 if back.size else 0] = False
    steps, times = steps[recent], times[recent]
    if steps.size < 2 or steps[-1] <= steps[0] or times[-1] <= times[0]:
        return None
    return float((times[-1] - times[0]) / (steps[-1] - steps[0]))


def checkpoints(folder: Path) -> list[CheckpointPayload]:
    """Checkpoints, oldest first, judged by their manifests and the sizes of their files; nothing is hashed."""
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
    """The files at the top of a run folder and among its logs, with sizes."""
    listed = [*((name,) for name in names_below(folder, most=500)), *(("logs", n) for n in names_below(folder, "logs"))]
    sizes = [("/".join(parts), stat_below(folder, *parts)) for parts in listed]
    return [{"name": name, "bytes": found.st_size} for name, found in sizes if found is not None]


def detail(connection: sqlite3.Connection, row: sqlite3.Row, folder: Path, summary: RunRow) -> dict[str, object]:
    """Everything about one run but its curves and texts."""
    return {
        "id": row["id"],
        "info": without_secrets(info_of(row)),
        "summary": summary,
        "progress": progress(connection, row),
        "metrics": metrics_by_prefix(connection, row["key"]),
        "ranks": ranks_of(folder),
        "checkpoints": checkpoints(folder),
        "files": files_of(folder),
        "wandb": _wandb_link(folder),
        "commands": commands(folder, str(row["state"])),
    }


def commands(folder: Path, state: str) -> dict[str, str]:
    """What to type about a run, by purpose. The path is found from any folder and with any runs folder."""
    name = shlex.quote(str(folder))
    found = {"stop": f"shardyard stop {name}", "export": f"shardyard export {name}"}
    if state != "finished":
        found["resume"] = f"shardyard resume {name}"
    if objective := re.search(r"^objective: (\w+)$", text_below(folder, "resolved.yaml") or "", re.MULTILINE):
        # Only ours: to look at a run imports no code from outside.
        generates = objective[1] in OBJECTIVES and objective_spec(objective[1]).generates
        found["try"] = f'shardyard sample {name} "your prompt"' if generates else f"shardyard eval {name}"
    return found


def _wandb_link(folder: Path) -> str | None:
    """Address of the run at W&B, from what the run itself told."""
    told = next((event for event in reversed(happened(folder)) if isinstance(event, WandbStatus)), None)
    # A page links to nothing but http.
    found = re.match(r"https?://[^\s\"'<>]+", told.url) if told is not None and told.url else None
    return scrub(found[0]) if found else None


def recipe(folder: Path, info: Mapping[str, object]) -> RecipeTexts:
    """The recipe as given and resolved, and what follows from it."""
    resolved = text_below(folder, "resolved.yaml") or ""
    body, _, derived = resolved.partition("\n# Derived:\n")
    return {
        "given": scrub(text_below(folder, "recipe.yaml") or ""),
        "resolved": scrub(body),
        "derived": without_secrets(_derived(folder, derived)),
        "provenance": without_secrets(info.get("provenance") or {}),
    }


def _derived(folder: Path, comments: str) -> list[list[str]]:
    """What follows from the recipe: name, value, why. Folders written before plan.json have it as comments alone."""
    try:
        plan = from_dict(json.loads(read_below(folder, "plan.json", most=MOST_BYTES)))
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        found = (_DERIVED.match(line) for line in comments.splitlines())
        return [[one["what"], one["value"], one["why"] or ""] for one in found if one]
    return [list(row) for row in rows(plan)]


def events(folder: Path, cursor: int = 0) -> dict[str, object]:
    """Events from a cursor on, with their severity and in words, without the tables in them; of a long file the last
    ones."""
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
    """Tokens that each expert of each layer was given in an evaluation: that of `step`, else the newest."""
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
    """Objects of lines that hold some bytes; a file of any length is read in pieces."""
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
    """Fields of the recipes that differ among runs, and what each run came to."""
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
    """What a comparison needs of run.json, however much there is in it."""
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
    """Runs whose recipes differ in nothing but their seeds and names: their curves make one band."""
    apart = {"name", "train.seed", "description", "tracking.wandb.group"}
    groups: dict[str, list[str]] = defaultdict(list)
    for run_id in keys:
        recipe_of = {path: found[run_id] for path, found in values.items() if run_id in found and path not in apart}
        groups[json.dumps(recipe_of, sort_keys=True)].append(run_id)
    return [{"runs": runs} for runs in groups.values() if len(runs) > 1]
