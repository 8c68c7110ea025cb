"""Pairs of sentences with masked tokens, for masked LM and next-sentence prediction (Devlin et al. 2018, section 3.1).

Legend: T = sequence length in tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.masked import padding
from shardyard.data.formats.masking import Masker
from shardyard.data.formats.sentences import (
    Document,
    DocumentReader,
    Segment,
    has_segments,
    sentence_bounds,
    special_id,
)
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.errors import DataError

SPECIAL_TOKENS = 3
RANDOM_PROBABILITY = 0.5
FOLLOWS, RANDOM = 0, 1  # the classes of transformers' next-sentence head


@dataclass(frozen=True)
class Pair:
    """Segments A and B; B follows A in its document, or comes from another one (`is_random`)."""

    first: Segment
    second: Segment
    is_random: bool


@dataclass(frozen=True)
class Sentences:
    """A document with at least two sentences: sentence i has the tokens bounds[i] … bounds[i+1] - 1."""

    document: Document
    bounds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def segment(self, first: int, last: int) -> Segment:
        """Sentences `first` … `last` - 1."""
        return self.document.part(self.bounds[first], self.bounds[last])


class SentencePairs(ExampleRows):
    """Rows [CLS] A [SEP] B [SEP] with masked tokens.

    A and B are runs of whole sentences. In half of the rows B comes from another document of the window, and the
    sentences after A begin the next row, so that each document is read once per epoch. Devlin et al. fill the row with
    a random B; here it is about as long as the text that it replaces, and never the beginning of its document:
    otherwise the length of a row or a title would reveal it. Sentences longer than half a row are split, and so is the
    only sentence of a document.

    A row has `input_ids`, `labels` (-100 where nothing is predicted), `attention_mask`, `token_type_ids` (1 in B),
    int64 [≤ T] each, and `next_sentence_label` (1: random), a scalar.

    Raises:
        DataError: the tokenizer lacks a special token or words, or windows hold only one document.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        tokenizer = inputs.text_tokenizer
        self._room = inputs.sequence_length - SPECIAL_TOKENS
        if self._room < 4:
            raise DataError(f"data.sequence_length is {inputs.sequence_length}; pairs need at least 7 tokens.")
        if inputs.data.shuffle_window < 2:
            raise DataError(
                "next-sentence prediction takes every second B from another document of the window; set "
                "data.shuffle_window to 2 or more."
            )
        self._masker = Masker(tokenizer, inputs.masking)
        self._reader = DocumentReader(tokenizer)
        if inputs.masking.whole_word:
            self._reader.check_words()
        self._short = inputs.masking.short_probability
        self._first, self._between = special_id(tokenizer, "cls_token"), special_id(tokenizer, "sep_token")
        self._segments = has_segments(inputs.model)
        self._padding = padding(tokenizer)

    def pieces(self, examples: Sequence[Any], generator: np.random.Generator) -> list[Pair]:
        """The pairs of a window's documents, in random order."""
        documents = []
        for document, text in zip(self._reader.read(examples), examples, strict=True):
            if len(document) > 1:
                bounds = _divided(sentence_bounds(document, text), document, self._room // 2)
                documents.append(Sentences(document, tuple(bounds)))
            else:
                self.num_cut += len(document)
        found = [pair for index in range(len(documents)) for pair in self._pairs(documents, index, generator)]
        return [found[index] for index in generator.permutation(len(found))]

    def documents_of(self, piece: Pair, index: int) -> Sequence[int]:
        return list(dict.fromkeys((*piece.first.documents, *piece.second.documents)))

    def _pairs(self, documents: list[Sentences], index: int, generator: np.random.Generator) -> Iterator[Pair]:
        own, at = documents[index], 0
        while at < len(own):
            start = own.bounds[at]
            if at + 1 == len(own):
                halves = _halves(own.document, start, len(own.document))
                if halves is None:
                    self.num_cut += len(own.document) - start
                    return
                middle, end = halves
                first, second, after = own.document.part(start, middle), own.document.part(middle, end), None
            else:
                last = self._last(own, at, generator)
                split = int(generator.integers(at + 1, last))
                first, second, after = own.segment(at, split), own.segment(split, last), (split, last)
            is_random = len(documents) > 1 and generator.random() < RANDOM_PROBABILITY
            if is_random:
                if after is None:
                    self.num_cut += len(second)
                other = int(generator.integers(len(documents) - 1))
                second = _passage(documents[other + (other >= index)], len(second), generator)
                first, second = self._truncated(first, second, generator)
            yield Pair(first, second, is_random)
            at = len(own) if after is None else after[0] if is_random else after[1]

    def _last(self, own: Sentences, at: int, generator: np.random.Generator) -> int:
        """The end of the sentences from `at` that share a row: as many as fit, at least two."""
        is_short = generator.random() < self._short
        target = int(generator.integers(2, self._room + 1)) if is_short else self._room
        last = int(np.searchsorted(own.bounds, own.bounds[at] + target, side="right")) - 1
        return max(last, at + 2)

    def _truncated(self, first: Segment, second: Segment, generator: np.random.Generator) -> tuple[Segment, Segment]:
        """Remove tokens from the longer segment, randomly at either end, until both fit."""
        excess = max(0, len(first) + len(second) - self._room)
        self.num_cut += excess
        for front in generator.random(excess) < 0.5:
            if len(first) > len(second):
                first = _shortened(first, bool(front))
            else:
                second = _shortened(second, bool(front))
        return first, second

    def row(self, piece: Pair, generator: np.random.Generator) -> Row:
        """[CLS] A [SEP] B [SEP], newly masked."""
        a, b = piece.first, piece.second
        tokens = np.concatenate([[self._first], a.tokens, [self._between], b.tokens, [self._between]])
        words = np.concatenate([[-1], a.words, [-1], b.words, [-1]])
        inputs, labels = self._masker.hide(tokens, words, generator)
        row: Row = {"input_ids": inputs, "labels": labels, "attention_mask": np.ones_like(inputs)}
        row["next_sentence_label"] = np.array(RANDOM if piece.is_random else FOLLOWS)
        if self._segments:
            row["token_type_ids"] = (np.arange(len(tokens)) >= len(a) + 2).astype(np.int64)
        return row

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors: [B, ≤ T], and [B] for `next_sentence_label`."""
        return collate(rows, self._padding)


def _divided(bounds: list[int], document: Document, longest: int) -> list[int]:
    """Bounds with sentences above `longest` split into equal parts, and an only sentence split in two."""
    found = {0}
    for start, end in pairwise(bounds):
        parts = -(-(end - start) // longest)
        found.update(start + (end - start) * part // parts for part in range(1, parts + 1))
    if len(found) == 2:
        found.update(_halves(document, 0, len(document)) or ())
    return sorted(found)


def _halves(document: Document, start: int, end: int) -> tuple[int, int] | None:
    """(middle, end), with the middle at the start of a word if possible; None for a single token."""
    if end - start < 2:
        return None
    begins = start + 1 + np.flatnonzero(np.diff(document.words[start:end]) != 0)
    half = (start + end) // 2
    middle = int(begins[np.abs(begins - half).argmin()]) if len(begins) else half
    return middle, end


def _passage(other: Sentences, wanted: int, generator: np.random.Generator) -> Segment:
    """Sentences with about `wanted` tokens, from a random start (never the first) with enough tokens after it.

    If no start has enough tokens, all sentences but the first.
    """
    bounds = np.array(other.bounds)
    starts = np.flatnonzero(bounds[-1] - bounds[1:-1] >= wanted) + 1
    start = int(generator.choice(starts)) if len(starts) else 1
    ends = bounds[start + 1 :] - bounds[start]
    return other.segment(start, start + 1 + int(np.abs(ends - wanted).argmin()))


def _shortened(segment: Segment, front: bool) -> Segment:
    return segment.part(1, len(segment)) if front else segment.part(0, len(segment) - 1)


def make(inputs: FormatInputs) -> SentencePairs:
    """Create the format from its inputs."""
    return SentencePairs(inputs)
