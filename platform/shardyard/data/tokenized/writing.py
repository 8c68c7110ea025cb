"""Writing tokenised documents: one shard after the other, each whole or not visible at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from shardyard.data.tokenized.layout import (
    LARGEST_LENGTH,
    REASON_BITS,
    ROW,
    Run,
    Shard,
    TokenType,
)
from shardyard.data.tokenized.rows import EveryRow, ReadRow
from shardyard.data.whole_files import aside
from shardyard.errors import DataError

Encode = Callable[[Sequence[str]], Sequence[npt.NDArray[Any]]]
# A shard ends with the document that reaches this number of tokens, or with this number of rows: a minute or two of
# work for one core, which is what a killed call loses.
SHARD_TOKENS = 1 << 26
SHARD_ROWS = 1 << 22
# Rows that are tokenised together.
_ROWS, _CHARACTERS = 256, 1 << 20


@dataclass(frozen=True)
class Task:
    """Rows that one process tokenises: those of the units `first` … `last` - 1, or `rows` of the unit `first`."""

    number: int
    first: int
    last: int
    rows: tuple[int, int] | None = None


@dataclass
class ShardWriter:
    """A shard that is being written. It becomes visible with `finish`, and leaves nothing behind without."""

    folder: Path
    task: int
    part: int
    kind: TokenType
    _rows: list[npt.NDArray[Any]] = field(default_factory=list)
    _runs: list[Run] = field(default_factory=list)
    _problems: dict[str, str] = field(default_factory=dict)
    _reasons: dict[str, int] = field(default_factory=dict)
    rows: int = 0
    tokens: int = 0
    _text_bytes: int = 0
    _largest: int = -1
    _statuses: list[int] = field(default_factory=lambda: [0] * 6)

    def __post_init__(self) -> None:
        self.name = f"{self.task:06d}-{self.part:04d}"
        self._partial = self.folder / f".{self.name}-{os.getpid()}.partial"
        self._digest = hashlib.sha256()
        self._file: IO[bytes] = self._partial.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._file.close()
        self._partial.unlink(missing_ok=True)

    def add(self, unit: int, first: int, rows: Sequence[ReadRow], tokens: Sequence[npt.NDArray[Any]]) -> None:
        """Append consecutive rows of a unit with their tokens, [n] each; none for rows without a text."""
        records = np.zeros(len(rows), ROW)
        lengths = np.array([len(ids) for ids in tokens], dtype=np.int64)
        sizes = np.array([min(len(row.text.encode()), LARGEST_LENGTH) for row in rows], dtype=np.int64)
        records["end"] = self.tokens + np.cumsum(lengths)
        records["identity"] = [row.identity for row in rows]
        records["content"] = [row.content for row in rows]
        records["text_bytes"] = sizes
        records["status"] = [row.status for row in rows]
        for index, row in enumerate(rows, self.rows):
            self._statuses[row.status] += 1
            if row.removed:
                reason = self._reasons.setdefault(row.removed, len(self._reasons) + 1)
                records["status"][index - self.rows] |= reason << REASON_BITS
            if row.problem:
                self._problems[str(index)] = row.problem
        joined = np.concatenate([ids for ids in tokens if len(ids)] or [np.empty(0, self.kind)])
        if len(joined):
            self._largest = max(self._largest, int(joined.max()))
        content = joined.astype(np.dtype(self.kind).newbyteorder("<")).tobytes()
        self._digest.update(content)
        self._file.write(content)
        self._rows.append(records)
        self._add_run(unit, first, len(rows))
        self.rows, self.tokens = self.rows + len(rows), self.tokens + int(lengths.sum())
        self._text_bytes += int(sizes.sum())

    def _add_run(self, unit: int, first: int, rows: int) -> None:
        last = self._runs[-1] if self._runs else None
        if last is not None and last.unit == unit and last.first + last.rows == first:
            self._runs[-1] = Run(unit, last.first, last.rows + rows)
        else:
            self._runs.append(Run(unit, first, rows))

    @property
    def is_full(self) -> bool:
        return self.tokens >= SHARD_TOKENS or self.rows >= SHARD_ROWS

    def finish(self, *, is_last: bool) -> Shard:
        """Make the shard visible: first its files, at last the record that says what they are."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        sha256 = {f"{self.name}.tokens": self._digest.hexdigest()}
        content = np.concatenate(self._rows or [np.empty(0, ROW)]).tobytes()
        sha256[f"{self.name}.rows"] = self._written(f"{self.name}.rows", content)
        if self._problems or self._reasons:
            name = f"{self.name}.problems.json"
            problems = {"rows": self._problems, "reasons": list(self._reasons)}
            sha256[name] = self._written(name, json.dumps(problems).encode())
        self._partial.replace(self.folder / f"{self.name}.tokens")
        shard = Shard(
            self.name,
            self.task,
            self.part,
            tuple(self._runs),
            self.rows,
            self.tokens,
            self._text_bytes,
            self._largest,
            tuple(self._statuses),
            is_last,
            sha256,
        )
        self._written(f"{self.name}.json", json.dumps(asdict(shard)).encode())
        return shard

    def _written(self, name: str, content: bytes) -> str:
        with aside(self.folder / name) as partial:
            partial.write_bytes(content)
        return hashlib.sha256(content).hexdigest()


def write_task(
    folder: Path,
    task: Task,
    done: Sequence[Shard],
    reader_of: Callable[[int], EveryRow],
    encode: Encode,
    kind: TokenType,
) -> list[Shard]:
    """Tokenise the rows of a task that are not in its finished shards `done` yet; returns all its shards.

    Args:
        reader_of: unit → a reader of its rows, which is at the first one; `seek_row` moves it.
        encode: texts → their tokens, without separators.

    Raises:
        DataError: a source cannot be read, or the files cannot be written; finished shards are kept.
    """
    shards = list(done)
    if shards and shards[-1].is_last:
        return shards
    unit, row = _next_row(task, shards)
    try:
        rows = _rows_of(task, unit, row, reader_of)
        pending = next(rows, None)
        while pending is not None or not shards:
            with ShardWriter(folder, task.number, len(shards), kind) as writer:
                while pending is not None and not writer.is_full:
                    own_unit, first, some = pending
                    writer.add(own_unit, first, some, _tokens(some, encode))
                    pending = next(rows, None)
                shards.append(writer.finish(is_last=pending is None))
    except OSError as error:
        raise _not_written(folder, error) from error
    return shards


def _next_row(task: Task, done: Sequence[Shard]) -> tuple[int, int]:
    runs = [run for shard in done for run in shard.runs]
    if not runs:
        return task.first, task.rows[0] if task.rows else 0
    return runs[-1].unit, runs[-1].first + runs[-1].rows


def _rows_of(
    task: Task, unit: int, row: int, reader_of: Callable[[int], EveryRow]
) -> Iterator[tuple[int, int, list[ReadRow]]]:
    """Parts of the rows of a task from a place on: unit, number of the first row in it, and rows."""
    for number in range(unit, task.last):
        reader = reader_of(number)
        at = row if number == unit else 0
        last = task.rows[1] if task.rows else None
        try:
            reader.seek_row(at)
            while some := reader.read_rows(_ROWS if last is None else min(_ROWS, last - at)):
                yield number, at, some
                at += len(some)
        finally:
            reader.close()


def _tokens(rows: Sequence[ReadRow], encode: Encode) -> list[npt.NDArray[Any]]:
    """The tokens of each row; a call of the tokenizer gets no more characters than it takes well."""
    empty: npt.NDArray[Any] = np.empty(0, np.uint16)
    found = [empty] * len(rows)
    with_text = [index for index, row in enumerate(rows) if row.text]
    first = characters = 0
    for place, index in enumerate(with_text):
        characters += len(rows[index].text)
        if characters >= _CHARACTERS or place + 1 == len(with_text):
            part = with_text[first : place + 1]
            for number, ids in zip(part, encode([rows[own].text for own in part]), strict=True):
                found[number] = ids
            first, characters = place + 1, 0
    return found


def _not_written(folder: Path, error: OSError) -> DataError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DataError(
            f"{folder}: no space is left on the device. The finished shards are kept: free some space, or give another "
            "folder with --to, and call the same command again."
        )
    return DataError(f"{folder} cannot be written: {error}. The finished shards are kept.")
