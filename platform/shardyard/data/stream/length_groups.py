"""Rows of like length in the same global batch, so that little of it is padding (`data.group_by_length`).

The pieces of a window are sorted by length. Each global batch takes those at one quantile of what is left of the
window, drawn at random but by the number of the batch: all streams draw the same quantile for the same batch, whichever
rank reads them, so their rows are of like length although no stream knows of the others.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from shardyard.data.stream.shuffle import LENGTH_STREAM, keyed_words
from shardyard.recipe.schema import Data

DRAWS_PER_BLOCK = 256


def size_of(value: Any) -> int:
    """How long the row of a piece will be, in any unit: the characters of its texts, or the tokens that it has."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(size_of(one) for one in value.values())
    if isinstance(value, np.ndarray):
        return int(value.size)
    if isinstance(value, list | tuple):
        return sum(size_of(one) for one in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return sum(size_of(getattr(value, field.name)) for field in dataclasses.fields(value))
    return 0


class Order(Protocol):
    """The order in which the pieces of a window become rows."""

    def next(self, row: int) -> int:
        """The index of the next piece, which becomes row `row` of the stream."""


class InOrder:
    """The order in which they are."""

    def __init__(self) -> None:
        self._count = itertools.count()

    def next(self, row: int) -> int:
        return next(self._count)


class ByLength:
    """The order for batches of like length: each piece once, whichever rows they become.

    Args:
        sizes: of the pieces, in their shuffled order, which decides between equal ones.
        group: rows that a stream gives to a global batch.
        key: seed and source, the same for all streams.
    """

    def __init__(self, sizes: Sequence[int], group: int, key: tuple[int, int]) -> None:
        self._left: list[int] = np.argsort(np.asarray(sizes, dtype=np.int64), kind="stable").tolist()
        self._group, self._key = group, key
        self._block = -1
        self._draws: npt.NDArray[np.floating[Any]] = np.empty(0)

    def next(self, row: int) -> int:
        """The index of the next piece, which becomes row `row` of the stream."""
        block, place = divmod(row // self._group, DRAWS_PER_BLOCK)
        if block != self._block:
            words = keyed_words(DRAWS_PER_BLOCK, LENGTH_STREAM, *self._key, block)
            self._block, self._draws = block, (words >> np.uint64(11)) * 2.0**-53  # [0, 1) in doubles
        return self._left.pop(int(self._draws[place] * len(self._left)))


def rows_per_batch_of(data: Data, global_batch: int, streams: int) -> int:
    """Rows that a stream gives to a global batch of rows of like length; 0 if `data.group_by_length` is off.

    With more streams than rows, a stream gives a row to every few batches.
    """
    return max(1, global_batch // streams) if data.group_by_length else 0
