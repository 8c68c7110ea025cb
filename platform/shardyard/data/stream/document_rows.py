"""From documents to rows that hold one document each, for models in which nothing else keeps documents apart."""

from __future__ import annotations

import numpy as np

from shardyard.data.stream.cuts import Cuts
from shardyard.data.stream.packing import IGNORED, TokenStream
from shardyard.data.stream.rows import Row


class DocumentStream(TokenStream):
    """Rows of one document, or of a piece of a longer one, padded at the end with separators without targets.

    The pieces of a document begin with the last token of the piece before, and every token is a target once, as in
    packed rows; so is the separator after a document, which ends it.
    """

    def next_row(self) -> Row | None:
        """The next row; None if the stream has ended."""
        length, separator = self._length, self._encoder.separator
        if not self._hold(0):
            return None
        own = self._held[0].tokens
        # With two separators a document has its own end, which is no input: what follows it is no target.
        last = len(own) - 1 if self._encoder.two_separators else len(own)
        filled = min(length, last - self._offset)
        tokens = np.append(own, separator)[self._offset : self._offset + filled + 1].astype(np.int64)
        inputs, labels = np.full((2, length), separator, dtype=np.int64)
        labels[filled:] = IGNORED
        inputs[:filled], labels[:filled] = tokens[:-1], tokens[1:]
        self._last = [(self._held[0], self._offset, filled + 1)]
        if self._offset:
            self.cuts += Cuts(1, filled)
        self._hold(1)  # where the next row may begin
        # After its last target, the rest of a document is its end.
        self._consume(filled if self._offset + filled < last else len(own) - self._offset)
        self.num_rows += 1
        self.num_tokens += filled
        return {"input_ids": inputs, "labels": labels, "position_ids": np.arange(length, dtype=np.int64)}
