"""Rows: from examples to rows, and from rows to the tensors of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NotRequired, Protocol, TypedDict, cast, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shardyard.data.stream.cuts import Cuts
from shardyard.data.stream.reader import START, Cursor, CursorState
from shardyard.data.stream.shuffle import Window, Windows

# Name → array of one row; arrays that the model takes have the name of its argument.
Row = dict[str, npt.NDArray[Any]]
Tensors = dict[str, Tensor]


_CURSOR = tuple(field.name for field in fields(Cursor))


class PositionState(TypedDict):
    """A position in the data state of a checkpoint."""

    epoch: int
    window: int
    cursor: CursorState
    document: int
    offset: int
    since: NotRequired[int]
    odd: NotRequired[list[tuple[int, int]]]


@dataclass(frozen=True)
class Position:
    """A position in one (stream, source): window `window` of `epoch`, which was read from `cursor`.

    `document` is an index into the permuted window's documents (or pieces of them), `offset` a number of tokens from
    the document's start. Where batches hold rows of like length, `since` is the number of rows of the (stream, source)
    before the window, and `odd` has (index, number of rows) for what did not become one row.
    """

    epoch: int = 0
    window: int = 0
    cursor: Cursor = START
    document: int = 0
    offset: int = 0
    since: int = 0
    odd: tuple[tuple[int, int], ...] = ()

    def to_json(self) -> PositionState:
        # By hand: `asdict` copies the state of `datasets`, which nobody changes, and takes most of a short row's time.
        cursor = cast(CursorState, {name: getattr(self.cursor, name) for name in _CURSOR})
        state: PositionState = {
            "epoch": self.epoch,
            "window": self.window,
            "cursor": cursor,
            "document": self.document,
            "offset": self.offset,
        }
        if self.since:
            state["since"] = self.since
        if self.odd:
            state["odd"] = list(self.odd)
        return state

    @classmethod
    def from_json(cls, value: PositionState) -> Position:
        odd = tuple((index, rows) for index, rows in value.get("odd", ()))
        return replace(cls(**cast(Any, value)), cursor=Cursor(**value["cursor"]), odd=odd)


@dataclass(frozen=True)
class Part:
    """A document of a row, or the part of it that is in the row.

    `document` is its number in `window`, `first` the number of its first token in the row, counted with the separator
    before it, and `tokens` how many inputs of the row are its; None where they are not counted by document.
    """

    window: Window
    document: int
    first: int = 0
    tokens: int | None = None

    @property
    def share_number(self) -> int:
        """The number of the document in the share of its stream, or in the whole source if that is read."""
        return self.window.share_number(self.document)


class RowStream(Protocol):
    """Rows of one (stream, source). `position` is where the next row begins and restores the stream exactly."""

    num_rows: int
    num_documents: int
    num_tokens: int
    cuts: Cuts
    """What the rows lost by cutting since the stream began."""

    @property
    def windows(self) -> Windows: ...
    @property
    def position(self) -> Position: ...
    def restore(self, position: Position) -> None: ...
    def next_row(self) -> Row | None: ...
    def parts(self) -> Sequence[Part]:
        """The documents that the last row was made of, in order."""

    def close(self) -> None: ...


class Rows(Protocol):
    """Converts examples of one objective to rows, and rows to a batch. `num_cut` counts tokens that did not fit."""

    num_cut: int

    def stream(self, windows: Windows) -> RowStream: ...
    def collate(self, rows: Sequence[Row]) -> Tensors: ...


@runtime_checkable
class Fills(Protocol):
    """A format that has rows without targets, with which a batch is filled up once some streams are exhausted."""

    def filler(self) -> Row: ...


def collate(rows: Sequence[Row], fill: Mapping[str, float] | None = None) -> Tensors:
    """Stack rows into tensors [B, …] by name; arrays of different lengths are padded at the end of their first axis.

    Args:
        rows: all with the same names.
        fill: padding value by name; arrays of any other name must have equal lengths.
    """
    fill = fill or {}
    return {name: _stack([row[name] for row in rows], fill.get(name)) for name in rows[0]}


def _stack(arrays: list[npt.NDArray[Any]], fill: float | None) -> Tensor:
    lengths = {array.shape[0] if array.ndim else 0 for array in arrays}
    if len(lengths) == 1:
        return torch.from_numpy(np.stack(arrays))
    assert fill is not None, "arrays of different lengths need a value to pad with"
    shape = (len(arrays), max(lengths), *arrays[0].shape[1:])
    padded = np.full(shape, fill, dtype=arrays[0].dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(padded)
