"""Rows of documents for causal language models: concatenated and cut, packed best-fit, or one document each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.stream.document_rows import DocumentStream
from shardyard.data.stream.fitted_documents import FittedStream
from shardyard.data.stream.packing import IGNORED, DocumentEncoder, TokenStream
from shardyard.data.stream.rows import Row, RowStream, Tensors, collate
from shardyard.data.stream.shuffle import Windows
from shardyard.recipe.isolation import isolation_of, packs_best_fit


class PackedRows:
    """Rows of `sequence_length` tokens without truncation, as `data.packing` says; of one document each if
    `data.isolation` is `rows`. Rows that documents do not fill are padded with separators without targets."""

    def __init__(self, inputs: FormatInputs) -> None:
        self.num_cut = 0
        self._length = inputs.sequence_length
        self._isolate = inputs.data.isolate_documents
        self._fitted = packs_best_fit(inputs.data)
        self._alone = self._isolate and isolation_of(inputs.data) == "rows"
        self._encoder = DocumentEncoder(inputs.text_tokenizer)
        self._empty = {"input_ids": self._encoder.separator, "labels": IGNORED}

    def stream(self, windows: Windows) -> RowStream:
        """Rows of one (stream, source)."""
        if self._alone:
            return DocumentStream(windows, self._encoder, length=self._length, isolate=True)
        if self._fitted:
            return FittedStream(windows, self._encoder, length=self._length, isolate=self._isolate)
        return TokenStream(windows, self._encoder, length=self._length, isolate=self._isolate)

    def filler(self) -> Row:
        """A row without targets, for a stream whose sources are exhausted while others have rows."""
        row = {name: np.full(self._length, value, dtype=np.int64) for name, value in self._empty.items()}
        return {**row, "position_ids": np.arange(self._length, dtype=np.int64)}

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors [B, T]."""
        return collate([self._full(row) for row in rows])

    def _full(self, row: Row) -> Row:
        """The row with padding to T. Each position of it is a document of its own, where documents are isolated."""
        filled = len(row["input_ids"])
        if filled == self._length:
            return row
        missing = self._length - filled
        rest = {
            "input_ids": np.full(missing, self._encoder.separator, np.int64),
            "labels": np.full(missing, IGNORED, np.int64),
            "position_ids": np.zeros(missing, np.int64) if self._isolate else np.arange(filled, self._length),
        }
        return {name: np.concatenate([row[name], rest[name]]) for name in rest}


def make(inputs: FormatInputs) -> PackedRows:
    """Create the format from its inputs."""
    return PackedRows(inputs)
