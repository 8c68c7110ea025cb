"""Documents concatenated and split into full rows, for causal language models."""

from __future__ import annotations

from collections.abc import Sequence

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.stream.packing import DocumentEncoder, TokenStream
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.stream.shuffle import Windows


class PackedRows:
    """Rows of `sequence_length` tokens without padding or truncation."""

    def __init__(self, inputs: FormatInputs) -> None:
        self.num_cut = 0
        self._length = inputs.sequence_length
        self._isolate = inputs.data.isolate_documents
        self._encoder = DocumentEncoder(inputs.text_tokenizer)

    def stream(self, windows: Windows) -> TokenStream:
        """Rows of one (stream, source)."""
        return TokenStream(windows, self._encoder, length=self._length, isolate=self._isolate)

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors [B, T]."""
        return collate(rows)


def make(inputs: FormatInputs) -> PackedRows:
    """Create the format from its inputs."""
    return PackedRows(inputs)
