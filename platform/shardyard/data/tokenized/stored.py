"""Sets of tokenised documents as `shardyard data tokenize` writes them, read from memory maps."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from shardyard.data.sources.sources import Broken
from shardyard.data.tokenized.documents import TokenDataset, TokenPart, TokenRow, Tokens
from shardyard.data.tokenized.layout import (
    BROKEN,
    EMPTY,
    FILTERED,
    MENDED,
    REASON_BITS,
    ROW,
    USABLE,
    Manifest,
    Problems,
    Shard,
    mapped,
    problems_in,
    read_manifest,
)

# Shards whose maps are kept; a stream reads one or two at a time.
_OPEN_SHARDS = 256


@dataclass(frozen=True)
class _Open:
    """The arrays of a shard. `ends` begins with 0: row n has the tokens from ends[n] to ends[n + 1]."""

    tokens: Tokens
    ends: npt.NDArray[np.int64]
    identities: npt.NDArray[np.uint64]
    contents: npt.NDArray[np.uint64]
    statuses: npt.NDArray[np.uint32]
    text_bytes: npt.NDArray[np.uint32]
    problems: Problems


class TokenSet:
    """A finished set. Rows are numbered over the whole set, in the order of the source. Safe for several threads."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.manifest = folder, read_manifest(folder)
        self._firsts = [0, *accumulate(shard.rows for shard in self.manifest.shards)]
        self._open: OrderedDict[int, _Open] = OrderedDict()
        self._lock = threading.Lock()

    def dataset(self) -> TokenDataset:
        """The set with the shards of its source."""
        units = self.manifest.units
        bounds = [0, *accumulate(unit.rows for unit in units)]
        finer: tuple[TokenPart, ...] = tuple(
            StoredPart(self, bounds[index], bounds[index + 1], (index,)) for index in range(len(units))
        )
        groups: dict[int, list[int]] = {}
        for index, unit in enumerate(units):
            groups.setdefault(unit.shard, []).append(index)
        parts: tuple[TokenPart, ...] = tuple(
            StoredPart(self, bounds[own[0]], bounds[own[-1] + 1], tuple(own)) for own in groups.values()
        )
        return TokenDataset(parts, finer)

    def rows(self, numbers: Sequence[int]) -> list[TokenRow | Broken]:
        """Some rows, by ascending numbers."""
        found: list[TokenRow | Broken] = []
        at = 0
        while at < len(numbers):
            number = bisect_right(self._firsts, numbers[at]) - 1
            last = bisect_right(numbers, self._firsts[number + 1] - 1, at)
            first = self._firsts[number]
            found += _rows(self._shard(number), [row - first for row in numbers[at:last]])
            at = last
        return found

    def _shard(self, number: int) -> _Open:
        with self._lock:
            if number not in self._open:
                self._open[number] = _opened(self.folder, self.manifest, self.manifest.shards[number])
                while len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)
            return self._open[number]


def _opened(folder: Path, manifest: Manifest, shard: Shard) -> _Open:
    rows = mapped(folder / f"{shard.name}.rows", ROW)
    tokens = mapped(folder / f"{shard.name}.tokens", np.dtype(manifest.token_type).newbyteorder("<"))
    ends = np.zeros(shard.rows + 1, np.int64)
    ends[1:] = rows["end"]
    identities, contents, statuses, text_bytes = (
        np.ascontiguousarray(rows[name]) for name in ("identity", "content", "status", "text_bytes")
    )
    return _Open(tokens, ends, identities, contents, statuses, text_bytes, problems_in(folder, shard))


def _rows(shard: _Open, numbers: Sequence[int]) -> list[TokenRow | Broken]:
    chosen = np.array(numbers, dtype=np.int64)
    begins, ends = shard.ends[chosen].tolist(), shard.ends[chosen + 1].tolist()
    identities, statuses = shard.identities[chosen].tolist(), shard.statuses[chosen].tolist()
    contents = shard.contents[chosen].tolist()
    tokens = shard.tokens
    found: list[TokenRow | Broken] = [
        TokenRow(tokens[begin:end], identity, status, "", content)
        for begin, end, identity, status, content in zip(begins, ends, identities, statuses, contents, strict=True)
    ]
    for index in np.flatnonzero(shard.statuses[chosen] > EMPTY).tolist():
        number = numbers[index]
        found[index] = _with_problem(found[index], number, shard)
    return found


def _with_problem(row: Any, number: int, shard: _Open) -> TokenRow | Broken:
    status, reason = row.status & ((1 << REASON_BITS) - 1), row.status >> REASON_BITS
    problem = shard.problems.rows.get(number, "")
    why = shard.problems.reasons[reason - 1] if reason else ""
    removed = TokenRow(row.tokens, row.identity, FILTERED, why, row.content)
    if status == FILTERED:
        return removed
    if status == BROKEN:
        return Broken(problem, None)
    if status == MENDED:
        mended = TokenRow(row.tokens, row.identity, USABLE if shard.text_bytes[number] else EMPTY, "", row.content)
        return Broken(problem, cast(Any, removed if reason else mended))
    return TokenRow(row.tokens, row.identity, status, problem)


@dataclass(frozen=True)
class StoredPart:
    """The rows `first` … `last` - 1 of a set: a shard of its source, made of these units."""

    tokens: TokenSet
    first: int
    last: int
    units: tuple[int, ...]

    @property
    def name(self) -> str:
        """The file of the source, or the folder of the set."""
        return self.tokens.manifest.units[self.units[0]].file or str(self.tokens.folder)

    def num_rows(self) -> int:
        """All rows, usable or not."""
        return self.last - self.first

    def rows(self, numbers: Sequence[int]) -> list[TokenRow | Broken]:
        """Some rows, by ascending numbers. Raises DataError if the files cannot be read."""
        return self.tokens.rows([self.first + number for number in numbers])

    def place(self, number: int) -> str:
        """`train.jsonl, row 61`: rows of a file are counted from 1."""
        units = self.tokens.manifest.units
        own = units[self.units[0]]
        file = Path(self.name).name
        before = sum(unit.rows for unit in units[: self.units[0]] if unit.shard == own.shard)
        return f"{file}, row {before + number + 1}"
