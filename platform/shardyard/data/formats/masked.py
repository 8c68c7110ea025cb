"""Documents split into rows with masked tokens, for masked language models.

Legend: T = sequence length in tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.masking import Masker
from shardyard.data.formats.sentences import (
    DocumentReader,
    Segment,
    check_positions,
    has_segments,
    special_id,
)
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.packing import IGNORED
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.errors import DataError

SHORTEST = 2


class MaskedRows(ExampleRows):
    """Rows [CLS] tokens [SEP], masked anew in each epoch; no part of a document is dropped.

    With `data.isolate_documents` a row holds tokens of one document, and the last row of each is shorter; without it
    documents are concatenated with [SEP] between them (FULL-SENTENCES of Liu et al. 2019, RoBERTa). Rows are padded to
    the longest of their micro-batch.

    A row has `input_ids`, `labels` (-100 where nothing is predicted), `attention_mask` and, for a model with segments,
    `token_type_ids`; int64 [≤ T] each.

    Raises:
        DataError: the tokenizer lacks a special token or words, or the model has too few positions.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        tokenizer = inputs.text_tokenizer
        self._room = inputs.sequence_length - 2
        if self._room < SHORTEST:
            raise DataError(f"data.sequence_length is {inputs.sequence_length}; masked rows need at least 4 tokens.")
        check_positions(inputs.sequence_length, inputs.model)
        self._masker = Masker(tokenizer, inputs.masking)
        self._reader = DocumentReader(tokenizer)
        if inputs.masking.whole_word:
            self._reader.check_words()
        self._short = inputs.masking.short_probability
        self._isolate = inputs.data.isolate_documents
        self._first = special_id(tokenizer, "cls_token", "bos_token")
        self._last = special_id(tokenizer, "sep_token", "eos_token")
        self._segments = has_segments(inputs.model)
        self._padding = padding(tokenizer)

    def pieces(self, examples: Sequence[Any], generator: np.random.Generator) -> list[Segment]:
        """The segments that become rows, in random order."""
        documents: list[Segment] = [document for document in self._reader.read(examples) if len(document)]
        if documents and not self._isolate:
            found = _named(self._cut(self._joined(documents), generator), documents)
        else:
            found = [piece for document in documents for piece in self._cut(document, generator)]
        return [found[index] for index in generator.permutation(len(found))]

    def _joined(self, documents: Sequence[Segment]) -> Segment:
        between = Segment(np.array([self._last]), np.array([-1]))
        parts = [part for document in documents for part in (between, document)][1:]
        return Segment(np.concatenate([p.tokens for p in parts]), np.concatenate([p.words for p in parts]))

    def _cut(self, document: Segment, generator: np.random.Generator) -> Iterator[Segment]:
        at = 0
        while at < len(document):
            is_short = generator.random() < self._short
            length = int(generator.integers(SHORTEST, self._room + 1)) if is_short else self._room
            yield document.part(at, at + length)
            at += length

    def documents_of(self, piece: Segment, index: int) -> Sequence[int]:
        return piece.documents

    def row(self, piece: Segment, generator: np.random.Generator) -> Row:
        """[CLS] piece [SEP], newly masked."""
        tokens = np.concatenate([[self._first], piece.tokens, [self._last]])
        words = np.concatenate([[-1], piece.words, [-1]])
        inputs, labels = self._masker.hide(tokens, words, generator)
        row: Row = {"input_ids": inputs, "labels": labels, "attention_mask": np.ones_like(inputs)}
        return row | ({"token_type_ids": np.zeros_like(inputs)} if self._segments else {})

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors [B, ≤ T]."""
        return collate(rows, self._padding)


def _named(pieces: Iterable[Segment], documents: Sequence[Segment]) -> list[Segment]:
    """The pieces of joined documents, each with those that it comes from; separators belong to the document before."""
    bounds = np.cumsum([len(document) + 1 for document in documents])
    found, at = list[Segment](), 0
    for piece in pieces:
        first, last = np.searchsorted(bounds, [at, at + len(piece) - 1], side="right")
        own = tuple(index for document in documents[first : last + 1] for index in document.documents)
        found.append(replace(piece, documents=own))
        at += len(piece)
    return found


def padding(tokenizer: Any) -> dict[str, float]:
    """The padding value of each array of a text row.

    Raises:
        DataError: the tokenizer has no padding token.
    """
    pad = special_id(tokenizer, "pad_token")
    return {"input_ids": pad, "labels": IGNORED, "attention_mask": 0, "token_type_ids": 0}


def make(inputs: FormatInputs) -> MaskedRows:
    """Create the format from its inputs."""
    return MaskedRows(inputs)
