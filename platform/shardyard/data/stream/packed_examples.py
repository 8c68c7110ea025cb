"""Several examples in one row, isolated from each other: the examples of a window are packed into as few rows as fit.

Legend: T = sequence length in tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from shardyard.data.stream.best_fit import best_fit
from shardyard.data.stream.cuts import Cuts
from shardyard.data.stream.examples import ExampleRows, ExampleStream
from shardyard.data.stream.rows import Part, Position, Row
from shardyard.data.stream.shuffle import PACKING_STREAM, Window, Windows, keyed_permutation


class PackableRows(Protocol):
    """A format whose rows can be joined."""

    def length(self, row: Row) -> int: ...
    def join(self, rows: Sequence[Row]) -> Row: ...


class PackedExamples(ExampleStream):
    """Rows of whole examples; only an example longer than T is truncated.

    A window is packed by itself, so a stream is restored by reading its window again: `position.document` is the number
    of rows of the window that were read.
    """

    def __init__(self, windows: Windows, rows: ExampleRows, joiner: PackableRows, *, length: int) -> None:
        self._joiner, self._length = joiner, length
        super().__init__(windows, rows)

    def count_pieces(self) -> int:
        """The number of remaining rows."""
        return sum(1 for _ in iter(self.next_row, None))

    def _made(self, skip: int = 0, begun: int = 0) -> Iterator[tuple[Row, Position, list[Part]]]:
        assert not begun, "a window's rows are counted, not the rows of an example"
        while (window := self._windows.next()) is not None:
            if not skip and not self._progresses(window):
                continue
            at = Position(window.epoch, window.index, window.cursor)
            packed = self._packed(window)
            for index in range(skip, len(packed)):
                self._nothing_since = None
                row = self._joiner.join([own for own, _, _ in packed[index]])
                self.cuts += sum((cut for _, _, cut in packed[index]), Cuts())
                yield row, replace(at, document=index + 1), [part for _, part, _ in packed[index]]
            self.num_documents += len(window.examples)
            skip = 0

    def _packed(self, window: Window) -> list[list[tuple[Row, Part, Cuts]]]:
        """The rows of a window's examples, packed, in an order that does not depend on their lengths."""
        number = len(window.examples)
        rows = list[tuple[Row, Part, Cuts]]()
        for index, example in enumerate(window.examples):
            made = self._learnable(example, window, index, number)
            for row, cut in zip(made, itertools.chain([self._cut], itertools.repeat(Cuts())), strict=False):
                rows.append((row, Part(window, window.document(index), 0, self._joiner.length(row)), cut))
        packs = best_fit([part.tokens or 0 for _, part, _ in rows], self._length)
        order = keyed_permutation(len(packs), PACKING_STREAM, *window.key)
        return [[rows[index] for index in packs[number]] for number in order]
