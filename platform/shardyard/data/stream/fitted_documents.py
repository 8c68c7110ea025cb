"""From documents to rows without cutting any that fits: the documents of a window, packed best-fit.

Legend: T = sequence length in tokens. A document of n tokens takes n+1 positions: its separator and its tokens are
inputs, its tokens and its end are targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

import numpy as np

from shardyard.data.stream.best_fit import best_fit
from shardyard.data.stream.cuts import Cuts
from shardyard.data.stream.packing import DocumentEncoder, encoded_parts
from shardyard.data.stream.rows import Part, Position, Row
from shardyard.data.stream.shuffle import PACKING_STREAM, Window, Windows, keyed_permutation
from shardyard.data.tokenizers.arrays import Tokens


class FittedStream:
    """Rows of one (stream, source) that hold whole documents; only one longer than T is cut (Ding et al. 2024).

    A document longer than T fills rows of its own, and what remains of it is packed like a shorter one. A window is
    packed by itself, so its rows are a function of its documents, and a stream is restored by reading its window again:
    `position.document` is the number of rows of the window that were read. The rows of a window come in an order that
    does not depend on their lengths.

    A row has `input_ids`, `labels` and `position_ids`, int64 [≤ T] each: documents fill rows as far as they fit.
    """

    def __init__(self, windows: Windows, encoder: DocumentEncoder, *, length: int, isolate: bool) -> None:
        self.num_rows = self.num_documents = self.num_tokens = 0
        self.cuts = Cuts()
        self._parts: list[Part] = []
        self._windows, self._encoder = windows, encoder
        self._length, self._isolate = length, isolate
        self._position = Position()
        self._source = self._made()

    @property
    def windows(self) -> Windows:
        return self._windows

    @property
    def position(self) -> Position:
        return self._position

    def restore(self, position: Position) -> None:
        """Continue at `position`: the next call of `next_row` reads and packs its window again."""
        self._windows.seek(position.epoch, position.window, position.cursor)
        self._position = position
        self._source = self._made(position.document)

    def close(self) -> None:
        self._windows.reader.close()

    def parts(self) -> list[Part]:
        return self._parts

    def next_row(self) -> Row | None:
        """The next row; None if the stream has ended."""
        made = next(self._source, None)
        if made is None:
            return None
        row, self._parts, self._position, ended = made
        self.num_rows += 1
        self.num_tokens += len(row["input_ids"])
        self.num_documents += ended
        begun = [part.tokens or 0 for part in self._parts if part.first]
        self.cuts += Cuts(len(begun), sum(begun))
        return row

    def _made(self, skip: int = 0) -> Iterator[tuple[Row, list[Part], Position, int]]:
        """Each row with its documents, the position after it, and how many documents end in it."""
        while (window := self._windows.next()) is not None:
            at = Position(window.epoch, window.index, window.cursor)
            packed = _Packed(window, self._encoder, self._length)
            for index in range(skip, len(packed.rows)):
                parts = packed.rows[index]
                row = packed.row(parts, isolate=self._isolate)
                yield row, parts, replace(at, document=index + 1), sum(packed.ends(part) for part in parts)
            skip = 0


class _Packed:
    """The documents of a window as tokens, and what each of its rows holds of them."""

    def __init__(self, window: Window, encoder: DocumentEncoder, length: int) -> None:
        self._encoder = encoder
        drawn = cast(list[tuple[int, str]], window.drawn(0, window.size))
        self._tokens: dict[int, Tokens] = {
            number: tokens
            for part in encoded_parts(drawn)
            for (number, _), tokens in zip(part, encoder.encode([text for _, text in part]), strict=True)
        }
        pieces = [
            Part(window, document, first, min(length, self._size(document) - first))
            for document in self._tokens
            for first in range(0, self._size(document), length)
        ]
        packs = best_fit([piece.tokens or 0 for piece in pieces], length)
        order = keyed_permutation(len(packs), PACKING_STREAM, *window.key).tolist()
        self.rows = [[pieces[index] for index in packs[number]] for number in order]

    def _size(self, document: int) -> int:
        """Positions of a document. With two separators it has its own end, which is no input."""
        return len(self._tokens[document]) - self._encoder.two_separators

    def ends(self, part: Part) -> bool:
        """Whether this is the last piece of its document."""
        return part.first + (part.tokens or 0) == self._size(part.document)

    def row(self, parts: list[Part], *, isolate: bool) -> Row:
        sizes = [part.tokens or 0 for part in parts]
        inputs = np.concatenate(
            [self._tokens[part.document][part.first : part.first + (part.tokens or 0)] for part in parts]
        )
        positions = np.arange(len(inputs), dtype=np.int64)
        if isolate:
            positions -= np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
        labels = np.concatenate([self._targets(part) for part in parts])
        return {"input_ids": inputs.astype(np.int64), "labels": labels.astype(np.int64), "position_ids": positions}

    def _targets(self, part: Part) -> Tokens:
        size = part.tokens or 0
        found = self._tokens[part.document][part.first + 1 : part.first + size + 1]
        # The separator of whichever document comes next ends this one.
        return found if len(found) == size else np.append(found, found.dtype.type(self._encoder.separator))
