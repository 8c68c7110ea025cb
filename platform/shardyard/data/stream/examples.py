"""Rows from one example each, or from one piece of an example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from shardyard.data.sources.sources import Example
from shardyard.data.stream.rows import Position, Row, Tensors, collate
from shardyard.data.stream.shuffle import EXAMPLE_STREAM, Window, Windows
from shardyard.errors import DataError


class ExampleRows:
    """Base of the formats in `formats/`: a window of examples becomes pieces, and each piece a row.

    Random choices (masks, crops) come from generators keyed by seed, stream, source, epoch, window and piece, so a row
    is the same whenever it is made again.
    """

    padding: ClassVar[Mapping[str, float]] = {}

    def __init__(self) -> None:
        self.num_cut = 0

    def pieces(self, examples: Sequence[Example], generator: np.random.Generator) -> Sequence[Any]:
        """The pieces that become rows, in order; they should be small, because a whole window is held in memory."""
        return examples

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of one piece."""
        raise NotImplementedError

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, …] by name."""
        return collate(rows, self.padding)

    def stream(self, windows: Windows) -> ExampleStream:
        """Rows of one (stream, source)."""
        return ExampleStream(windows, self)


class ExampleStream:
    """Rows of one (stream, source), made on demand. `position` restores the stream exactly."""

    def __init__(self, windows: Windows, rows: ExampleRows) -> None:
        self.num_rows = self.num_documents = self.num_tokens = 0
        self._windows, self._rows = windows, rows
        self._position = Position()
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
        self._position = position
        self._source = self._made(position.document)

    def close(self) -> None:
        self._windows.reader.close()

    def next_row(self) -> Row | None:
        """The next row; None if the stream has ended."""
        made = next(self._source, None)
        if made is None:
            return None
        row, self._position = made
        self.num_rows += 1
        self.num_tokens += len(row.get("input_ids", ()))
        return row

    def count_pieces(self) -> int:
        """The number of remaining rows, without making them: images are not decoded."""
        windows = iter(self._windows.next, None)
        return sum(len(self._rows.pieces(window.examples, _generator(window))) for window in windows)

    def _made(self, skip: int = 0) -> Iterator[tuple[Row, Position]]:
        """Each row with the position after it."""
        while (window := self._windows.next()) is not None:
            at = Position(window.epoch, window.index, window.cursor)
            pieces = self._rows.pieces(window.examples, _generator(window))
            for index in range(skip, len(pieces)):
                yield self._row(pieces[index], _generator(window, index)), replace(at, document=index + 1)
            self.num_documents += len(window.examples)
            skip = 0

    def _row(self, piece: Any, generator: np.random.Generator) -> Row:
        try:
            return self._rows.row(piece, generator)
        except DataError as error:
            raise DataError(f"source {self._windows.reader.name}: {error}") from error


def _generator(window: Window, *index: int) -> np.random.Generator:
    # The length of the key distinguishes the generator of a window from those of its pieces.
    key = (EXAMPLE_STREAM, len(index), *window.key, *index)
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
