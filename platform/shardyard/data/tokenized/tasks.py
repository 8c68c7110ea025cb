"""How a source is divided: its finest shards, and the tasks of about equal size that processes take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from shardyard.data.index.records import IrregularError
from shardyard.data.index.rows import indexed_files
from shardyard.data.quirks import shard_files
from shardyard.data.sources.sources import OpenSource
from shardyard.data.tokenized.writing import Task
from shardyard.data.whole_files import aside
from shardyard.errors import DataError

TASKS = "tasks.json"
# Bytes of files that a task reads: enough that opening them costs little, and few enough that all processes end
# together. Larger data has larger tasks, so that there are not too many files.
TASK_BYTES = 1 << 24
_MOST_TASKS = 4096
_ALL = 1 << 62


@dataclass(frozen=True)
class Part:
    """A unit before its rows are counted: a file or a row group, and the source's shard that it is part of."""

    file: str | None
    row_group: int | None
    shard: int
    num_bytes: int


def parts_of(opened: OpenSource, finest: Any) -> list[Part]:
    """The units of a source.

    Args:
        finest: its dataset after `reshard`.

    Raises:
        DataError: the finest shards cannot be assigned to shards.
    """
    number, whole = opened.dataset.num_shards, shard_files(opened.dataset)
    files = shard_files(finest)
    if finest.num_shards == number:
        shards = list(range(number))
    elif len(whole) == number and len(files) == finest.num_shards:
        shards = _shards_of([file.path for file in files], [file.path for file in whole])
    else:
        raise DataError(f"{opened.name} cannot be tokenised: it is not known which of its parts belong to which file.")
    named: list[Any] = list(files) if len(files) == finest.num_shards else [None] * finest.num_shards
    counts = [shards.count(shard) for shard in range(number)] if finest.num_shards != number else [1] * number
    found = []
    for file, shard in zip(named, shards, strict=True):
        group = file.row_groups[0] if file is not None and file.row_groups else None
        path = file.path if file is not None else None
        found.append(Part(path, group, shard, _size(path) // counts[shard]))
    return found


def _shards_of(files: Sequence[str], whole: Sequence[str]) -> list[int]:
    found, at = [], 0
    for file in files:
        while at < len(whole) and whole[at] != file:
            at += 1
        if at == len(whole):
            raise DataError(f"{file} cannot be tokenised: its row groups are not in the order of the files.")
        found.append(at)
    return found


def _size(path: str | None) -> int:
    if path is None or "://" in path:
        return TASK_BYTES
    try:
        return Path(path).stat().st_size
    except OSError:
        return TASK_BYTES


def plan_tasks(parts: Sequence[Part], finest: Any) -> list[Task]:
    """Tasks of about equal size: small units together, and large files whose rows can be found by their number in
    ranges of rows."""
    task_bytes = max(TASK_BYTES, sum(part.num_bytes for part in parts) // _MOST_TASKS)
    tasks: list[Task] = []
    first = size = 0
    for number, part in enumerate(parts):
        ranges = _ranges(part, finest, number, task_bytes) if part.num_bytes >= 2 * task_bytes else []
        if number > first and (ranges or size + part.num_bytes > task_bytes):
            tasks.append(Task(len(tasks), first, number))
            first, size = number, 0
        size += part.num_bytes
        if ranges:
            tasks += [Task(len(tasks) + at, number, number + 1, own) for at, own in enumerate(ranges)]
            first, size = number + 1, 0
    if first < len(parts):
        tasks.append(Task(len(tasks), first, len(parts)))
    return tasks


def _ranges(part: Part, finest: Any, number: int, task_bytes: int) -> list[tuple[int, int]]:
    """Ranges of rows of a large file; none if its rows must be read from its start."""
    files = indexed_files(finest.shard(num_shards=finest.num_shards, index=number, contiguous=False))
    if files is None:
        return []
    try:
        rows = files.known(0, _ALL)
    except IrregularError:
        return []
    finally:
        files.close()
    count = -(-part.num_bytes // task_bytes)
    bounds = [rows * at // count for at in range(count + 1)]
    return [(first, last) for first, last in pairwise(bounds) if first < last]


def kept_tasks(folder: Path) -> list[Task] | None:
    """The tasks by which an earlier call began this set; None if none has."""
    try:
        found = json.loads((folder / TASKS).read_text(encoding="utf-8"))
        return [Task(**{**task, "rows": tuple(task["rows"]) if task["rows"] else None}) for task in found]
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep_tasks(folder: Path, tasks: Sequence[Task]) -> None:
    """Write the tasks, so that a later call goes on with the same ones."""
    with aside(folder / TASKS) as partial:
        partial.write_text(json.dumps([asdict(task) for task in tasks]), "utf-8")
