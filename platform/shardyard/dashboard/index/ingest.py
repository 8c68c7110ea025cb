"""Reading one run folder into the index: run.json, the resolved recipe, and new lines of metrics.jsonl.

Each file is read only if its stat result has changed. Errors are reported in `problem`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import yaml  # type: ignore[import-untyped]

from shardyard.dashboard.charts.columns import Floats, Parsed, average, parse, positions_of
from shardyard.dashboard.charts.sparkline import Sparkline
from shardyard.dashboard.index.files import opened_below, pread, read_below, stat_below
from shardyard.errors import RunFolderError
from shardyard.launch.describe import wait_in_words
from shardyard.recipe.renamed import with_current_names
from shardyard.redaction import scrub_all
from shardyard.tracking.files import decode
from shardyard.tracking.metrics import record
from shardyard.tracking.run.holder import is_gone
from shardyard.tracking.run.info import STATES, RunInfo

# Bytes per turn; a longer file takes several turns, which bounds memory and does not delay other runs.
READ_BYTES = 8 * 1024**2
MOST_LINE_BYTES = READ_BYTES // 2
_HEAD_BYTES = 256
MOST_CHUNK_ROWS = 65_536
SMOOTHED_WEIGHT = 0.9
_MOST_FIELDS = 2000
MOST_INFO_BYTES = 1024**2
_PARTS = ("recipe.yaml", "resolved.yaml", "metrics.jsonl", "events.jsonl", "logs")


@dataclass
class IngestResult:
    """The result of reading a run once. `more`: a file has more bytes to read."""

    changed: bool = False
    more: bool = False
    problems: list[str] = field(default_factory=list)


class Seen(TypedDict):
    """The columns of a run in the index before it is read again; see `store`."""

    info_stamp: str | None
    recipe_stamp: str | None
    metrics_inode: int | None
    metrics_offset: int
    metrics_head: str | None
    rows: int
    torn: int
    spark_state: str | None
    problem: str | None
    state: str
    info: str


class Columns(TypedDict, total=False):
    """Changed columns of a run: from run.json, the recipe and the metrics."""

    info_stamp: str
    name: str
    state: str
    created_text: str | None
    created: float | None
    started: str | None
    ended: str | None
    total_steps: int | None
    world_size: int | None
    attempts: int
    waiting: str | None
    info: str
    step: int
    recipe_stamp: str
    sweep: str | None
    tags: str
    metrics_inode: int
    metrics_offset: int
    metrics_head: str
    rows: int
    torn: int
    spark_state: str
    spark: str
    last_time: float | None
    loss: float | None
    eval_loss: float | None
    problem: str | None


def looks_like_a_run(folder: Path) -> bool:
    """Whether a folder without run.json seems to be an incomplete or damaged run."""
    return any(os.path.lexists(folder / name) for name in _PARTS)


def ingest(connection: sqlite3.Connection, folder: Path, key: int) -> IngestResult:
    """Update the rows of one run, in the open transaction."""
    names = tuple(Seen.__annotations__)
    row = connection.execute(f"SELECT {', '.join(names)} FROM runs WHERE key = ?", (key,)).fetchone()
    before = cast("Seen", dict(zip(names, row, strict=True)))
    result = IngestResult()
    values: Columns = {}
    values |= _info(folder, before, result)
    values |= _recipe(connection, folder, key, before, result)
    values |= _metrics(connection, folder, key, before, result)
    problem = "; ".join(result.problems) or None
    if problem != before["problem"]:
        result.changed = True
    if result.changed:
        values["problem"] = problem
        assignments = ", ".join(f"{name} = :{name}" for name in values)
        connection.execute(f"UPDATE runs SET {assignments} WHERE key = :key", {**values, "key": key})
    return result


def _stamp(found: os.stat_result | None) -> str:
    return "" if found is None else f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def _info(folder: Path, before: Seen, result: IngestResult) -> Columns:
    """The columns from run.json, if it has changed."""
    stamp = _stamp(stat_below(folder, "run.json"))
    if stamp == before["info_stamp"] and stamp:
        known = json.loads(before["info"])
        result.problems += [known["problem"]] if "problem" in known else []
        return _lost(known, folder, before, result)
    try:
        info = decode(read_below(folder, "run.json", most=MOST_INFO_BYTES))
        if not isinstance(info, dict):
            raise ValueError("it is not a JSON object")
        RunInfo.from_json(info)  # refuses files of a newer version
    except FileNotFoundError:
        info = {"problem": "run.json is missing: the folder is half written or damaged"}
    except (OSError, ValueError, RecursionError, RunFolderError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0][:200]
        info = {"problem": f"run.json cannot be read: {reason}"}
    # Older runs may contain secrets; the index must not.
    info = scrub_all(info)
    if "problem" in info:
        result.problems.append(str(info["problem"]))
        # Values read before the file was damaged are kept.
        kept = json.loads(before["info"])
        info = {**kept, "problem": info["problem"]}
    result.changed = result.changed or stamp != before["info_stamp"]
    return {"info_stamp": stamp, **_columns_of(info), **_lost(info, folder, before, result)}


def _columns_of(raw: Mapping[str, object]) -> Columns:
    info = RunInfo.from_json({**raw, "format": None})
    columns: Columns = {
        "name": info.name,
        "state": info.state if info.state in STATES else "unknown",
        "created_text": info.created,
        "created": _seconds(info.created),
        "started": info.started,
        "ended": info.ended,
        "total_steps": info.total_steps,
        "world_size": info.world_size,
        "attempts": info.attempts,
        "waiting": wait_in_words(info.waiting) if info.waiting is not None else None,
        "info": json.dumps(raw, default=str, ensure_ascii=False),
    }
    if info.step:
        columns["step"] = info.step
    return columns


def _lost(raw: Mapping[str, object], folder: Path, before: Seen, result: IngestResult) -> Columns:
    """The state `lost` instead of `pending` or `running` if the driver is gone, which no file records."""
    info = RunInfo.from_json({**raw, "format": None})
    if info.state not in ("pending", "running"):
        return {}
    state = "lost" if is_gone(info, folder) else info.state
    result.changed = result.changed or state != before["state"]
    return {"state": state}


_REPLACED = (":bool", ":timestamp", ":float", ":int", ":merge")
# YAML 1.2, the format of resolved.yaml, read by libyaml: 1e-05 is a number, `no` a string.
_Loader: Any = type("_Loader", (yaml.CSafeLoader,), {})
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(_REPLACED)]
    for first, found in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def _resolve(tag: str, pattern: str, first: str) -> None:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", r"^[-+]?[0-9]+$", "-+0123456789")
_resolve("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789")


def read_yaml(data: bytes) -> Any:
    """Plain values of YAML 1.2.

    Raises:
        yaml.YAMLError: it is not valid.
    """
    return yaml.load(data, _Loader)


def _recipe(connection: sqlite3.Connection, folder: Path, key: int, before: Seen, result: IngestResult) -> Columns:
    """Store the flattened resolved recipe, if it has changed."""
    stamp = _stamp(stat_below(folder, "resolved.yaml"))
    if stamp == before["recipe_stamp"]:
        return {}
    result.changed = True
    fields: dict[str, object] = {}
    try:
        found = with_current_names(scrub_all(read_yaml(read_below(folder, "resolved.yaml", most=MOST_INFO_BYTES))))
        fields = dict(zip_most(flatten(found), _MOST_FIELDS)) if isinstance(found, dict) else {}
    except FileNotFoundError:
        pass
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        # Reported as a field, which can be queried; the page of the recipe shows the text.
        fields = {"problem": f"resolved.yaml cannot be read: {str(error).splitlines()[0][:120]}"}
    connection.execute("DELETE FROM fields WHERE run = ?", (key,))
    connection.executemany("INSERT INTO fields VALUES (?, ?, ?)", [(key, *item) for item in fields.items()])
    connection.executemany("INSERT OR IGNORE INTO paths VALUES (?)", [(path,) for path in fields])
    group = fields.get("tracking.wandb.group")
    tags = [str(value) for path, value in fields.items() if path.startswith("tracking.tags.")]
    return {
        "recipe_stamp": stamp,
        "sweep": group if isinstance(group, str) and _is_sweep(folder.parent, group) else None,
        "tags": "".join(f"\n{tag}" for tag in tags) + ("\n" if tags else ""),
    }


def _is_sweep(runs_dir: Path, name: str) -> bool:
    return "/" not in name and "\0" not in name and (runs_dir / "sweeps" / name).is_dir()


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths of plain values; list items are numbered. Booleans become the strings true and false."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from flatten(item, f"{path}.{index}")
    elif isinstance(value, bool):
        yield path, "true" if value else "false"
    elif isinstance(value, int) and abs(value) >= 2**63:
        yield path, float(value)
    else:
        yield path, value if value is None or isinstance(value, int | float) else str(value)[:2000]


def zip_most(items: Iterator[tuple[str, Any]], most: int) -> Iterator[tuple[str, Any]]:
    """The first `most` items."""
    return (item for item, _ in zip(items, range(most), strict=False))


def _metrics(connection: sqlite3.Connection, folder: Path, key: int, before: Seen, result: IngestResult) -> Columns:
    """Store new lines of metrics.jsonl, at most one turn."""
    found = stat_below(folder, "metrics.jsonl")
    if found is None:
        if os.path.lexists(folder / "metrics.jsonl"):
            result.problems.append("metrics.jsonl is not a plain file")
        if before["metrics_offset"]:
            result.problems.append("metrics.jsonl has vanished")
        return {}
    values: Columns = {}
    offset, rows, torn = before["metrics_offset"], before["rows"], before["torn"]
    same_file = found.st_ino == before["metrics_inode"]
    if same_file and found.st_size == offset:
        _note_torn(torn, result)
        return {}
    try:
        with opened_below(folder, "metrics.jsonl") as descriptor:
            head = pread(descriptor, _HEAD_BYTES, 0)
            if found.st_size < offset or (offset and not same_file and not _begins_as(before["metrics_head"], head)):
                _forget(connection, key)
                offset = rows = torn = 0
                before = {**before, "spark_state": None}
                result.changed = True
                values |= {"loss": None, "eval_loss": None, "step": 0}
            data = pread(descriptor, READ_BYTES, offset)
    except OSError as error:
        result.problems.append(f"metrics.jsonl cannot be read: {error.strerror or error}")
        return {}
    taken = data.rfind(b"\n") + 1
    if not taken and len(data) >= MOST_LINE_BYTES:
        taken, torn = len(data), torn + 1  # Shardyard never writes such long lines; the rest is torn as well
    result.more = len(data) == READ_BYTES
    values |= {"metrics_inode": found.st_ino, "metrics_offset": offset + taken}
    if not before["metrics_head"] or offset == 0:
        values["metrics_head"] = f"{len(head)}:{hashlib.sha256(head).hexdigest()}"
    if taken:
        result.changed = True
        parsed = parse(data[:taken], rows)
        torn += parsed.torn
        values |= {"rows": rows + parsed.rows, "torn": torn}
        values |= _keep(connection, key, parsed, before)
    _note_torn(torn, result)
    if values.get("metrics_inode") != before["metrics_inode"]:
        result.changed = True
    return values


def _note_torn(torn: int, result: IngestResult) -> None:
    if torn:
        result.problems.append(f"metrics.jsonl: {torn} line{'s' if torn != 1 else ''} cannot be read")


def _begins_as(head: str | None, data: bytes) -> bool:
    """Whether a file with a new inode, for example from rsync, continues the one that was read before."""
    if not head:
        return False
    length, _, digest = head.partition(":")
    return hashlib.sha256(data[: int(length)]).hexdigest() == digest


def _forget(connection: sqlite3.Connection, key: int) -> None:
    for table in ("chunks", "metrics"):
        connection.execute(f"DELETE FROM {table} WHERE run = ?", (key,))


def _keep(connection: sqlite3.Connection, key: int, parsed: Parsed, before: Seen) -> Columns:
    """Append columns to chunks, and compute derived columns."""
    spark = Sparkline.load(before["spark_state"])
    if record.TRAIN_LOSS in parsed.columns:
        spark.add(parsed.columns[record.TRAIN_LOSS].values)
    for name in parsed.columns:
        values, rows = parsed.array(name)
        _append(connection, key, name, values, rows)
        _count(connection, key, name, values)
    connection.executemany("INSERT OR IGNORE INTO names VALUES (?)", [(name,) for name in parsed.columns])
    newest = {name: column.values[-1] for name, column in parsed.columns.items()}
    loss, eval_loss = newest.get(record.TRAIN_LOSS), record.newest_eval_loss(newest)
    changes: Columns = {"spark_state": spark.dump(), "last_time": newest.get("time")}
    if loss is not None:
        changes["loss"] = loss
    changes["spark"] = json.dumps(spark.shown(loss))
    if eval_loss is not None:
        changes["eval_loss"] = eval_loss
    if "step" in newest:
        changes["step"] = int(newest["step"])
    return changes


def _append(connection: sqlite3.Connection, key: int, name: str, values: Floats, rows: Any) -> None:
    """Append values, merged with chunks that are not larger, so that chunk sizes double and a growing run has few."""
    while True:
        last = connection.execute(
            "SELECT rowid, first, size, positions, data FROM chunks WHERE run = ? AND name = ?"
            " ORDER BY first DESC LIMIT 1",
            (key, name),
        ).fetchone()
        if last is None or last[2] > values.size or last[2] + values.size > MOST_CHUNK_ROWS:
            break
        values = np.concatenate([np.frombuffer(last[4], np.float64), values])
        rows = np.concatenate([positions_of(*last[1:4]), rows])
        connection.execute("DELETE FROM chunks WHERE rowid = ?", (last[0],))
    # Most metrics are in every line, so that the first row determines the others.
    dense = int(rows[-1] - rows[0]) + 1 == values.size
    connection.execute(
        "INSERT INTO chunks (run, name, first, size, positions, data) VALUES (?, ?, ?, ?, ?, ?)",
        (key, name, int(rows[0]), int(values.size), None if dense else rows.tobytes(), values.tobytes()),
    )


def _count(connection: sqlite3.Connection, key: int, name: str, values: Floats) -> None:
    known = connection.execute(
        "SELECT count, best, max, average, weight FROM metrics WHERE run = ? AND name = ?", (key, name)
    ).fetchone()
    count, best, most, state, mass = known or (0, None, None, 0.0, 0.0)
    finite = values[np.isfinite(values)]
    if finite.size:
        best = float(finite.min()) if best is None else min(best, float(finite.min()))
        most = float(finite.max()) if most is None else max(most, float(finite.max()))
    state, mass = average(values, SMOOTHED_WEIGHT, state, mass)
    # SQLite stores NaN as NULL.
    row = (key, name, count + values.size, float(values[-1]), best, most, state / mass if mass else None, state, mass)
    connection.execute("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)


def _seconds(value: Any) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
