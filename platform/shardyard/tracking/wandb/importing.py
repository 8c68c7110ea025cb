"""Importing offline runs of W&B, from any tool, as run folders for `shardyard runs` and the dashboard.

A resumed run has several files with one id and becomes one run folder, created atomically.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from shardyard.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, DataError, RunFolderError
from shardyard.tracking.files import decode, encode
from shardyard.tracking.metrics import record
from shardyard.tracking.run.events import Notice, write_event
from shardyard.tracking.run.folder import RunFolder, now_text
from shardyard.tracking.wandb.records import Records

# Common names in other tools of the metrics in Shardyard's tables; used if a run lacks Shardyard's metric.
KNOWN_AS = {
    record.TRAIN_LOSS: ("loss", "train_loss", "training_loss", "train/train_loss", "loss/train"),
    record.eval_loss(): ("eval/loss", "eval_loss", "val_loss", "val/loss", "validation_loss", "loss/val", "test_loss"),
    record.TRAIN_LR: ("lr", "learning_rate", "train/learning_rate"),
    record.TRAIN_GRAD_NORM: ("grad_norm", "gradient_norm"),
}
_RESERVED = frozenset({"_step", "_timestamp", "_runtime", "_wandb"})
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass
class ImportedRun:
    """One run of W&B, from one or more files. Times are Unix seconds; `steps` are lines as in metrics.jsonl."""

    run_id: str
    name: str = ""
    project: str = ""
    entity: str = ""
    group: str = ""
    notes: str = ""
    host: str = ""
    tags: list[str] = field(default_factory=list)
    config: dict[str, object] = field(default_factory=dict)
    summary: dict[str, object] = field(default_factory=dict)
    steps: list[dict[str, float]] = field(default_factory=list)
    output: list[str] = field(default_factory=list)
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    attempts: int = 0
    sources: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """`finished` or `failed` by the exit code; `interrupted` if the newest file has no exit record."""
        if self.exit_code is None:
            return "interrupted"
        return {0: "finished", EXIT_INTERRUPTED: "interrupted", EXIT_PREEMPTED: "preempted"}.get(
            self.exit_code, "failed"
        )

    @property
    def num_steps(self) -> int:
        return len({line["step"] for line in self.steps})

    @property
    def last_step(self) -> int:
        return max((int(line["step"]) for line in self.steps), default=0)


@dataclass(frozen=True)
class Written:
    """A run folder; `is_new` unless it already existed."""

    run: RunFolder
    is_new: bool


def wandb_files(path: Path) -> list[Path]:
    """The `.wandb` files of a path: itself, those of a run's folder, or those of all runs in a folder.

    Raises:
        DataError: there are none.
    """
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.wandb")) or sorted(path.glob("*/*.wandb")) or sorted(path.glob("wandb/*/*.wandb"))
    # `latest-run` is a link to another entry.
    unique = {file.resolve(): file for file in reversed(found)}
    if not unique:
        raise DataError(f"{path} has no .wandb file" if path.is_dir() else f"{path} is not there")
    return sorted(unique)


def read_runs(paths: Iterable[Path]) -> list[ImportedRun]:
    """The runs in these paths; several files of one run are joined in order of their start.

    Raises:
        DataError: a path has no `.wandb` file, a file is not one, or it lacks the run's id.
    """
    files = dict.fromkeys(file for path in paths for file in wandb_files(path))
    parts = sorted((read_file(file) for file in files), key=lambda part: part.started or 0.0)
    runs: dict[tuple[str, str, str], ImportedRun] = {}
    for part in parts:
        place = (part.entity, part.project, part.run_id)
        runs[place] = _joined(runs[place], part) if place in runs else part
    return list(runs.values())


def read_file(path: Path) -> ImportedRun:
    """Read one attempt of a run. A truncated file, for example of a killed process, gives its complete records.

    Raises:
        DataError: it is not a `.wandb` file, or contains no run.
    """
    records = Records(path)
    run = ImportedRun(run_id="", attempts=1, sources=[str(path)])
    for message in records:
        _take(run, message)
    if not run.run_id:
        reason = f"; {records.problem}" if records.problem else ""
        raise DataError(f"{path} has no run id{reason}, so it cannot be imported.")
    if records.problem:
        run.problems.append(f"{path.name}: {records.problem}")
    # System metrics from before the first step are assigned to it.
    first = next((line["step"] for line in run.steps if "step" in line), 0)
    run.steps = [{"step": first, **line} for line in run.steps]
    if not run.output:
        run.output = _captured(path.parent / "files" / "output.log")
    return run


def _joined(first: ImportedRun, later: ImportedRun) -> ImportedRun:
    """Join a run and its resumption; for steps in both, the later value counts, as in all run folders.

    An offline attempt does not know the steps of earlier ones: if it starts at 0 again, its steps are renumbered.
    """
    if later.steps and first.steps and later.steps[0]["step"] == 0:
        begin = first.last_step + 1
        later.steps = [{**line, "step": line["step"] + begin} for line in later.steps]
        later.problems.append(f"{later.sources[0]} starts again at step 0: its steps are renumbered from {begin}")
    joined = replace(first)
    for name in ("name", "group", "notes", "host"):
        setattr(joined, name, getattr(later, name) or getattr(first, name))
    joined.tags = list(dict.fromkeys([*first.tags, *later.tags]))
    joined.config, joined.summary = first.config | later.config, first.summary | later.summary
    joined.steps, joined.output = first.steps + later.steps, first.output + later.output
    joined.ended, joined.exit_code = later.ended or first.ended, later.exit_code
    joined.attempts = first.attempts + later.attempts
    joined.sources, joined.problems = first.sources + later.sources, first.problems + later.problems
    return joined


def _take(run: ImportedRun, message: Any) -> None:
    match message.WhichOneof("record_type"):
        case "run":
            _take_run(run, message.run)
        case "config":
            _update(run.config, message.config.update)
        case "summary":
            _update(run.summary, message.summary.update)
        case "history":
            _take_history(run, message.history)
        case "stats":
            _take_stats(run, message.stats)
        case "output_raw":
            run.output.append(message.output_raw.line)
        case "output":
            run.output.append(message.output.line)
        case "exit":
            run.exit_code = int(message.exit.exit_code)


def _take_run(run: ImportedRun, item: Any) -> None:
    run.run_id, run.project, run.entity = item.run_id, item.project, item.entity
    run.name, run.group, run.notes = (
        item.display_name or run.name,
        item.run_group or run.group,
        item.notes or run.notes,
    )
    run.host, run.tags = item.host, list(item.tags)
    _update(run.config, item.config.update)
    if item.HasField("start_time"):
        run.started = run.started or item.start_time.seconds + item.start_time.nanos / 1e9


def _take_history(run: ImportedRun, item: Any) -> None:
    values: dict[str, object] = {}
    _update(values, item.item)
    step = values.get("_step", item.step.num if item.HasField("step") else None)
    if not isinstance(step, int | float):
        return
    moment = values.get("_timestamp")
    line: dict[str, float] = {"step": int(step)}
    if isinstance(moment, int | float):
        line["time"] = run.ended = float(moment)
    line |= {name: value for name, value in _numbers(values) if name not in _RESERVED}
    run.steps.append(line)


def _take_stats(run: ImportedRun, stats: Any) -> None:
    """Add system metrics, which have no step, to the step of the previous record."""
    values: dict[str, object] = {}
    for item in stats.item:
        with contextlib.suppress(ValueError):
            values[item.key] = decode(item.value_json)
    moment = stats.timestamp.seconds + stats.timestamp.nanos / 1e9
    numbers = {f"system/{name}": value for name, value in _numbers(values) if name not in _RESERVED}
    if numbers:
        before = run.steps[-1] if run.steps else {}
        step = {"step": before["step"]} if "step" in before else {}
        run.steps.append({**step, "time": moment, **numbers})


def _update(values: dict[str, object], items: Iterable[Any]) -> None:
    """Add items of a config, history or summary: `nested_key` is a path, `key` a name."""
    for item in items:
        path = list(item.nested_key) or [item.key]
        try:
            value = decode(item.value_json)
        except ValueError:
            continue
        inner: object = values
        for name in path[:-1]:
            inner = inner.setdefault(name, {}) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[path[-1]] = value


def _numbers(values: Mapping[str, object], path: str = "") -> Iterator[tuple[str, float]]:
    """Numbers by name, nested ones joined with dots as in W&B; images, tables and texts are skipped."""
    for name, value in values.items():
        where = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping):
            if "_type" not in value:
                yield from _numbers(value, where)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield where, value


def _captured(path: Path) -> list[str]:
    """The terminal output captured by W&B, if it is stored beside the records."""
    try:
        return [path.read_text(encoding="utf-8", errors="replace")]
    except OSError:
        return []


# Writing.


def write_run(found: ImportedRun, runs_dir: Path, *, again: bool = False) -> Written:
    """Write a run folder; an existing one is kept, unless `again`.

    Raises:
        RunFolderError: the runs folder is not writable, or a run that was not imported has this id.
    """
    folder = runs_dir / folder_name(found)
    if (folder / "run.json").is_file() or folder.exists():
        if not _is_imported(folder):
            raise RunFolderError(f"{folder} exists and was not imported from W&B; move it away first.")
        if not again:
            return Written(RunFolder(folder), is_new=False)
    aside = runs_dir / f".importing-{folder.name}-{secrets.token_hex(4)}"
    try:
        aside.mkdir(parents=True)
        _fill(aside, folder.name, found)
        _replace(aside, folder)
    except OSError as error:
        raise RunFolderError(f"{runs_dir} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return Written(RunFolder(folder), is_new=True)


def folder_name(found: ImportedRun) -> str:
    """`<name>-<id>`: deterministic, so that a run is imported only once."""
    parts = [_UNSAFE.sub("-", text).strip("-._")[:60] for text in (found.name or found.project, found.run_id)]
    return "-".join(dict.fromkeys(part for part in parts if part)) or "run"


def _is_imported(folder: Path) -> bool:
    try:
        info = decode((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(info, dict) and "imported" in info


def _replace(aside: Path, folder: Path) -> None:
    """Replace the old folder with the new one. In between there may be no folder, but never a partial one."""
    if folder.exists():
        old = aside.with_name(f"{aside.name}.old")
        folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        aside.rename(folder)


def _fill(folder: Path, run_id: str, found: ImportedRun) -> None:
    (folder / "logs").mkdir()
    names = _renamed(found)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for line in found.steps:
            file.write(encode({names.get(name, name): value for name, value in line.items()}) + "\n")
    (folder / "logs" / "driver.log").write_text("".join(found.output), encoding="utf-8", errors="replace")
    for text in (f"imported from W&B: {', '.join(found.sources)}", *found.problems):
        write_event(folder / "events.jsonl", Notice(time=found.ended or 0.0, text=text))
    text = _as_yaml(_recipe(found))
    (folder / "resolved.yaml").write_text(text, encoding="utf-8")
    (folder / "recipe.yaml").write_text(
        f"# Configuration of a run imported from W&B; not a recipe.\n{text}", encoding="utf-8"
    )
    (folder / "run.json").write_text(json.dumps(_info(run_id, found, names), indent=2) + "\n", encoding="utf-8")
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _renamed(found: ImportedRun) -> dict[str, str]:
    """Name in W&B → name in the run folder, for the metrics in the tables."""
    there = {name for line in found.steps for name in line}
    return {
        other: name
        for name, others in KNOWN_AS.items()
        if name not in there and (other := next((other for other in others if other in there), None)) is not None
    }


def _recipe(found: ImportedRun) -> dict[str, object]:
    """The configuration from W&B, overridden by the fields that Shardyard's tables read."""
    config = {name: value for name, value in found.config.items() if name not in ("_wandb", "wandb_version")}
    tracking = {"tags": found.tags, "wandb": {"project": found.project or None, "group": found.group or None}}
    return {**config, "name": found.name or found.run_id, "tracking": tracking}


def _as_yaml(fields: dict[str, object]) -> str:
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.allow_unicode, yaml.width = False, True, 120
    yaml.dump(json.loads(encode(fields)), text)
    return text.getvalue()


def _info(run_id: str, found: ImportedRun, names: dict[str, str]) -> dict[str, object]:
    steps = found.last_step
    return {
        "id": run_id,
        "name": _UNSAFE.sub("-", found.name or found.project or found.run_id)[:80],
        "state": found.state,
        "created": _text(found.started) or now_text(),
        "started": _text(found.started),
        "ended": _text(found.ended),
        "world_size": None,
        "attempts": found.attempts,
        "step": steps,
        "total_steps": None,
        "provenance": {"host": found.host or None},
        "imported": {
            "from": "wandb",
            "id": found.run_id,
            "project": found.project,
            "entity": found.entity,
            "notes": found.notes,
            "files": found.sources,
            "renamed": names,
            "summary": dict(
                _numbers({k: v for k, v in json.loads(encode(found.summary)).items() if k not in _RESERVED})
            ),
        },
    }


def _text(seconds: float | None) -> str | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds")
