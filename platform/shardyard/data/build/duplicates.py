"""Which documents repeat an earlier one: clusters of equal hashes, of which the first in file order stays.

The result is a function of the hashes alone: neither the number of workers nor that of the parts of the table matters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Memory of the hashes that are sorted at once.
SORTED_BYTES = 256 << 20
Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Duplicates:
    """removed: keys of the removed documents, ascending. kept: of the one that stays instead of each. clusters: number
    of documents that stay for others."""

    removed: Keys
    kept: Keys
    clusters: int


def table_type(num_hashes: int) -> np.dtype[Any]:
    """The type of a file of hashes: of each document its key, and its hashes."""
    return np.dtype([("key", "<u8"), ("hashes", "<u8", (num_hashes,))])


def find_duplicates(files: Sequence[Path], num_hashes: int, sorted_bytes: int = SORTED_BYTES) -> Duplicates:
    """The duplicates among the documents of some files of hashes. Documents are alike if any hash is equal, and so are
    those that are both like a third."""
    tables = [np.load(file, mmap_mode="r") for file in files]
    documents = sum(len(table) for table in tables)
    parts = 1
    while documents * 16 > sorted_bytes * parts:
        parts *= 2
    clusters = _Clusters()
    for column in range(num_hashes):
        for part in range(parts):
            for first, second in _equal(tables, column, part, parts):
                clusters.join(first, second)
    pairs = sorted((key, root) for key in clusters.parents if (root := clusters.root(key)) != key)
    removed = np.array([key for key, _ in pairs], np.uint64)
    kept = np.array([root for _, root in pairs], np.uint64)
    return Duplicates(removed, kept, len(np.unique(kept)))


def _equal(tables: Sequence[Any], column: int, part: int, parts: int) -> Iterator[tuple[int, int]]:
    """Pairs of keys with an equal hash, each with the next of the same hash."""
    keys, hashes = [], []
    for table in tables:
        values = table["hashes"][:, column]
        own = values % np.uint64(parts) == part if parts > 1 else slice(None)
        keys.append(table["key"][own])
        hashes.append(values[own])
    key, value = np.concatenate(keys or [np.empty(0, np.uint64)]), np.concatenate(hashes or [np.empty(0, np.uint64)])
    order = np.lexsort((key, value))
    key, value = key[order], value[order]
    same = np.flatnonzero(value[1:] == value[:-1])
    yield from zip(key[same].tolist(), key[same + 1].tolist(), strict=True)


class _Clusters:
    """Union-find (Tarjan 1975) over those documents that are like another; the smallest key is the root."""

    def __init__(self) -> None:
        self.parents: dict[int, int] = {}

    def root(self, key: int) -> int:
        parent = self.parents.setdefault(key, key)
        while parent != key:
            # Each second document on the way points to the one after next.
            self.parents[key] = key = self.parents[parent]
            parent = self.parents[key]
        return key

    def join(self, first: int, second: int) -> None:
        low, high = sorted((self.root(first), self.root(second)))
        self.parents[high] = low
