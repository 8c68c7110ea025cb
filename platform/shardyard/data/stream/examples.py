"""Rows from one example each, or from one piece of an example."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from shardyard.data.sources.sources import Example
from shardyard.data.stream.cuts import Cuts
from shardyard.data.stream.length_groups import ByLength, InOrder, Order, size_of
from shardyard.data.stream.reader import ShareReader
from shardyard.data.stream.rows import Part, Position, Row, Tensors, collate
from shardyard.data.stream.shuffle import EXAMPLE_STREAM, Window, Windows
from shardyard.errors import DataError, UnusableRowError


class ExampleRows:
    """Base of the formats in `formats/`: a window of examples becomes pieces, and each piece a row.

    Random choices (masks, crops) come from generators keyed by seed, stream, source, epoch, window and piece, so a row
    is the same whenever it is made again.
    """

    padding: ClassVar[Mapping[str, float]] = {}
    # Whether rows may be left out for what they hold, so that they are counted by making them.
    drops: ClassVar[bool] = False

    def __init__(self) -> None:
        self.num_cut = 0

    def pieces(self, examples: Sequence[Example], generator: np.random.Generator) -> Sequence[Any]:
        """The pieces that become rows, in order; they should be small, because a whole window is held in memory."""
        return examples

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of one piece."""
        raise NotImplementedError

    def rows_of(self, piece: Any, generator: np.random.Generator) -> Sequence[Row]:
        """The rows of one piece, for a format in which a piece may become several."""
        return [self.row(piece, generator)]

    def documents_of(self, piece: Any, index: int) -> Sequence[int]:
        """Indices of the examples that the piece `index`, of which rows were made last, comes from."""
        return [index]

    def length(self, piece: Any) -> int:
        """How long the row of a piece will be, in any unit, told without making it: for `data.group_by_length`."""
        return size_of(piece)

    def learns(self, row: Row) -> bool:
        """Whether the row has a target; other rows are left out and counted."""
        return True

    def repairs(self, piece: Any) -> Iterator[Any]:
        """Pieces to try instead of one that is unusable, in this order, if `data.on_error` is `repair`."""
        return iter(())

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, …] by name."""
        return collate(rows, self.padding)

    def stream(self, windows: Windows) -> ExampleStream:
        """Rows of one (stream, source)."""
        return ExampleStream(windows, self)


class ExampleStream:
    """Rows of one (stream, source), made on demand. `position` restores the stream exactly.

    Rows without a target and, by `data.on_error`, unusable ones are left out. This depends on their content alone, so
    the order of the others is the same whenever the stream is read.
    """

    def __init__(self, windows: Windows, rows: ExampleRows) -> None:
        self.num_rows = self.num_documents = self.num_tokens = 0
        self.cuts = Cuts()
        self._windows, self._rows = windows, rows
        self._position = Position()
        self._parts: list[Part] = []
        # Of the last piece that was made to rows.
        self._cut = Cuts()
        # The epoch from whose start on no row was made; None if one was, or the epoch was not read from its start.
        self._nothing_since: int | None = None
        self._source = self._made()

    @property
    def windows(self) -> Windows:
        return self._windows

    @property
    def position(self) -> Position:
        return self._position

    def restore(self, position: Position) -> None:
        """Continue at `position`: the next call of `next_row` reads its window again."""
        self._windows.seek(position.epoch, position.window, position.cursor)
        self._position, self._nothing_since = position, None
        self._source = self._made(position.document, position.offset)

    def close(self) -> None:
        self._windows.reader.close()

    def next_row(self) -> Row | None:
        """The next row; None if the stream has ended."""
        made = next(self._source, None)
        if made is None:
            return None
        row, self._position, self._parts = made
        self.num_rows += 1
        self.num_tokens += np.size(row.get("input_ids", ()))
        return row

    def parts(self) -> list[Part]:
        return self._parts

    def count_pieces(self) -> int:
        """The number of remaining rows, where possible without making them: images are not decoded."""
        if self._rows.drops:
            return sum(1 for _ in iter(self.next_row, None))
        windows = (window for window in iter(self._windows.next, None) if window.examples)
        return sum(len(self._rows.pieces(window.examples, _generator(window))) for window in windows)

    def _made(self, skip: int = 0, begun: int = 0) -> Iterator[tuple[Row, Position, list[Part]]]:
        """Each row with the position after it, whose `offset` is the number of rows that were made of piece `document`,
        and the documents that it was made of."""
        since, odd = self._position.since, dict(self._position.odd)
        while (window := self._windows.next()) is not None:
            if not skip and not begun and not self._progresses(window):
                continue
            if not window.examples:
                continue
            at = Position(window.epoch, window.index, window.cursor, since=since)
            pieces = self._rows.pieces(window.examples, _generator(window))
            order, row = self._order(pieces, window), since
            for place in range(len(pieces)):
                index = order.next(row)
                if place < skip:
                    row += odd.get(place, 1)
                    continue
                rows = self._learnable(pieces[index], window, index, len(pieces))
                row += len(rows)
                self.cuts += self._cut
                if self._windows.group and len(rows) != 1:
                    odd[place] = len(rows)
                documents = self._rows.documents_of(pieces[index], index) if rows else ()
                parts = [Part(window, window.document(example)) for example in documents]
                for number in range(begun, len(rows)):
                    self._nothing_since = None
                    after = number + 1
                    done = after == len(rows)
                    made = replace(at, document=place + done, offset=0 if done else after, odd=tuple(odd.items()))
                    yield rows[number], made, parts
                begun = 0
            self.num_documents += len(window.examples)
            skip, since, odd = 0, row if self._windows.group else 0, {}

    def _order(self, pieces: Sequence[Any], window: Window) -> Order:
        if not self._windows.group:
            return InOrder()
        seed, _, source, *_ = window.key
        return ByLength([self._rows.length(piece) for piece in pieces], self._windows.group, (seed, source))

    def _progresses(self, window: Window) -> bool:
        """Whether to read the window: False if the share has been read from its start to its end without a single row.
        The whole source is read then.

        Raises:
            DataError: that has nothing to learn from either.
        """
        if self._nothing_since is not None and window.epoch > self._nothing_since:
            if self._windows.share_may_be_empty:
                return True
            if not self._windows.widen():
                raise DataError(nothing_left(self._windows.reader))
            self._nothing_since = None
            return False
        if self._nothing_since is None and window.index == 0:
            self._nothing_since = window.epoch
        return True

    def _learnable(self, piece: Any, window: Window, index: int, number: int) -> list[Row]:
        """The rows of a piece that are not left out."""
        left_out, cut_before, self._cut = self._windows.reader.left_out, self._rows.num_cut, Cuts()
        # The row of an example is named; pieces of examples have no place of their own.
        place = window.place(index) if number == len(window.examples) else self._windows.reader.name
        try:
            rows = self._rows_of(piece, lambda: _generator(window, index), place)
        except UnusableRowError as error:
            left_out.unusable(place, error)
            return []
        except DataError as error:
            raise DataError(f"source {self._windows.reader.name}: {error}") from error
        kept = [row for row in rows if self._rows.learns(row)]
        if not kept:
            self._rows.num_cut = cut_before
        cut = self._rows.num_cut - cut_before
        self._cut = Cuts(int(cut > 0), cut)
        if not rows:
            left_out.without_target(place, "no answer that is trained")
        for _ in range(len(rows) - len(kept)):
            left_out.without_target(place)
        return kept

    def _rows_of(self, piece: Any, generator: Callable[[], np.random.Generator], place: str) -> Sequence[Row]:
        """The rows of a piece, or of its first repair that is usable."""
        left_out = self._windows.reader.left_out
        try:
            return self._rows.rows_of(piece, generator())
        except UnusableRowError:
            if left_out.on_error != "repair":
                raise
            for repaired in self._rows.repairs(piece):
                with contextlib.suppress(UnusableRowError):
                    rows = self._rows.rows_of(repaired, generator())
                    left_out.repaired(place)
                    return rows
            raise


def nothing_left(reader: ShareReader) -> str:
    """The message about a source of which every row was left out."""
    return (
        f"source {reader.name} has nothing to learn from: {reader.left_out.in_words()}. Give rows room for their "
        "targets (data.sequence_length), or correct the rows."
    )


def _generator(window: Window, *index: int) -> np.random.Generator:
    # The length of the key distinguishes the generator of a window from those of its pieces.
    key = (EXAMPLE_STREAM, len(index), *window.key, *index)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
