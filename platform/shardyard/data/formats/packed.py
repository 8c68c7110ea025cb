"""Documents concatenated and split into full rows, for causal language models."""

from __future__ import annotations

from collections.abc import Sequence

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.stream.document_rows import DocumentStream
from shardyard.data.stream.packing import DocumentEncoder, TokenStream
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.stream.shuffle import Windows
from shardyard.recipe.isolation import isolation_of


class PackedRows:
    """Rows of `sequence_length` tokens without truncation; padded if `data.isolation` is `rows`."""

    def __init__(self, inputs: FormatInputs) -> None:
        self.num_cut = 0
        self._length = inputs.sequence_length
        self._isolate = inputs.data.isolate_documents
        self._alone = self._isolate and isolation_of(inputs.data) == "rows"
        self._encoder = DocumentEncoder(inputs.text_tokenizer)

    def stream(self, windows: Windows) -> TokenStream:
        """Rows of one (stream, source)."""
        if self._alone:
            return DocumentStream(windows, self._encoder, length=self._length, isolate=True)
        return TokenStream(windows, self._encoder, length=self._length, isolate=self._isolate)

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors [B, T]."""
        return collate(rows)


def make(inputs: FormatInputs) -> PackedRows:
    """Create the format from its inputs."""
    return PackedRows(inputs)
