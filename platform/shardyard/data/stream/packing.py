"""From documents to rows: the tokens of one (stream, source), cut into rows without waste.

Legend: T = sequence length in tokens.

A row takes T+1 consecutive tokens and the next row begins with the last of them, so that every token is a target once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import cast

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from shardyard.data.stream.cuts import Cuts
from shardyard.data.stream.rows import Part, Position, Row
from shardyard.data.stream.shuffle import Window, Windows
from shardyard.data.tokenizers.arrays import TokenArrays, Tokens
from shardyard.errors import DataError

IGNORED = -100
# Limits of one tokenizer call: large enough for throughput, small enough that long documents do not accumulate. The
# calls of the first window grow from one document on: the first row of each of many streams needs but one.
ENCODE_DOCUMENTS = 32
ENCODE_CHARACTERS = 1 << 18

Ints = npt.NDArray[np.int64]


def separators(tokenizer: PreTrainedTokenizerFast) -> tuple[list[int], list[int]]:
    """The tokens before and after each document.

    Raises:
        DataError: the tokenizer has no token that separates documents.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is None and eos is None:
        raise DataError(
            "the tokenizer has neither a bos nor an eos token, so documents cannot be told apart; choose another."
        )
    if bos is not None and eos is not None and bos != eos:
        return [bos], [eos]
    return [eos if eos is not None else bos], []


class DocumentEncoder:
    """Tokens of whole documents with their separators.

    One separator (only eos or bos, or both the same): document = [separator, tokens …], and the last token's target is
    the next document's separator. Two: document = [bos, tokens …, eos], and the target at eos is ignored.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._head, self._tail = separators(tokenizer)
        self.two_separators = bool(self._tail)
        self.separator: int = self._head[0]
        self._arrays = TokenArrays(tokenizer)

    def encode(self, texts: Sequence[str] | Sequence[Tokens]) -> list[Tokens]:
        """Tokens of each text, or the given ones, with separators; text that spells a special token stays text."""
        if len(texts) and isinstance(texts[0], np.ndarray):
            return self._arrays.framed(cast(Sequence[Tokens], texts), self._head, self._tail)
        return self._arrays.encode(cast(Sequence[str], texts), self._head, self._tail)


@dataclass(frozen=True)
class _Document:
    start: Position
    tokens: Tokens
    window: Window


class TokenStream:
    """Rows of one (stream, source). `position` is the first token of the next row and restores the stream exactly.

    A row has `input_ids`, `labels` (labels[i] is the target of input_ids[i], or -100) and `position_ids`, int64 [T]
    each.
    """

    def __init__(self, windows: Windows, encoder: DocumentEncoder, *, length: int, isolate: bool) -> None:
        self.num_rows = 0
        self.num_documents = 0
        self.num_tokens = 0
        self.cuts = Cuts()
        self._length, self._counting = length, np.arange(length)
        self._windows = windows
        self._encoder = encoder
        self._isolate = isolate
        self._held: deque[_Document] = deque()
        self._offset = 0
        self._restored = Position()
        # Documents of the last row, each with its first token and the number of tokens in the row.
        self._last: list[tuple[_Document, int, int]] = []
        self._source = self._documents()

    @property
    def windows(self) -> Windows:
        return self._windows

    @property
    def position(self) -> Position:
        if not self._held:
            return self._restored
        return replace(self._held[0].start, offset=self._offset)

    def restore(self, position: Position) -> None:
        """Continue at `position`: the next call of `next_row` reads and tokenises its window again."""
        self._windows.seek(position.epoch, position.window, position.cursor)
        self._held.clear()
        self._restored, self._offset = position, position.offset
        self._source = self._documents(position.document)

    def close(self) -> None:
        self._windows.reader.close()

    def parts(self) -> list[Part]:
        # The last token is only a target here, and the first one of the next row.
        inputs = [(own, first, tokens - (own is self._last[-1][0])) for own, first, tokens in self._last]
        return [Part(own.window, own.start.document, first, tokens) for own, first, tokens in inputs if tokens]

    def next_row(self) -> Row | None:
        """The next row; None if the stream has ended.

        If a single pass ends within the row, the rest is filled with separators without targets.
        """
        length = self._length
        tokens, starts = self._gather(length + 1)
        filled = len(tokens) - 1
        if filled < 1:
            return None
        inputs, labels, positions = np.empty((3, length), dtype=np.int64)
        inputs[:filled], inputs[filled:] = tokens[:-1], self._encoder.separator
        labels[:filled], labels[filled:] = tokens[1:], IGNORED
        positions[:] = self._counting
        bounds = [start for start in starts if 0 < start <= filled]
        if self._encoder.two_separators:
            labels[np.array(bounds, dtype=np.int64) - 1] = IGNORED
        if self._isolate:
            for start, end in pairwise([*bounds, length]):
                positions[start:end] = self._counting[: end - start]
        if self._offset:
            self.cuts += Cuts(1, bounds[0] if bounds else filled)
        self._consume(filled)
        self.num_rows += 1
        self.num_tokens += length
        return {"input_ids": inputs, "labels": labels, "position_ids": positions}

    def _gather(self, count: int) -> tuple[Ints, list[int]]:
        """The next `count` tokens (fewer at the end of a single pass) and the indices at which documents begin."""
        parts: list[Tokens] = []
        starts: list[int] = []
        self._last = []
        gathered, index, offset = 0, 0, self._offset
        while gathered < count and self._hold(index):
            if offset == 0:
                starts.append(gathered)
            part = self._held[index].tokens[offset : offset + count - gathered]
            parts.append(part)
            self._last.append((self._held[index], offset, len(part)))
            gathered += len(part)
            index, offset = index + 1, 0
        return np.concatenate(parts, dtype=np.int64) if parts else np.empty(0, np.int64), starts

    def _hold(self, index: int) -> bool:
        """Load document `index`, counted from the current one, into memory; False if there is none."""
        while len(self._held) <= index:
            document = next(self._source, None)
            if document is None:
                return False
            self._held.append(document)
        return True

    def _consume(self, count: int) -> None:
        """Advance by `count` tokens; they and the token after them must be in memory, unless the stream has ended."""
        self._offset += count
        while self._held and self._offset >= len(self._held[0].tokens):
            ended = self._held.popleft()
            self._offset -= len(ended.tokens)
            # Where nothing follows, this is the position.
            self._restored = replace(ended.start, document=ended.start.document + 1)
            self.num_documents += 1

    def _documents(self, skip: int = 0) -> Iterator[_Document]:
        count = 1
        while (window := self._windows.next()) is not None:
            for first, last in _ranges(window.size, skip, count):
                for part in encoded_parts(cast(list[tuple[int, str]], window.drawn(first, last))):
                    encoded = self._encoder.encode([text for _, text in part])
                    for (index, _), tokens in zip(part, encoded, strict=True):
                        yield _Document(_start(window, index), tokens, window)
            skip, count = 0, ENCODE_DOCUMENTS


def _start(window: Window, document: int) -> Position:
    return Position(window.epoch, window.index, window.cursor, document, 0)


def _ranges(size: int, skip: int, count: int = 1) -> Iterator[tuple[int, int]]:
    """Ranges of documents from `skip` on that are drawn together, of `count` documents and then of more."""
    first = skip
    while first < size:
        yield first, min(first + count, size)
        first, count = first + count, min(2 * count, ENCODE_DOCUMENTS)


def encoded_parts(texts: list[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    """Documents that are tokenised together."""
    first = characters = 0
    for index, (_, text) in enumerate(texts):
        if index > first and characters + len(text) > ENCODE_CHARACTERS:
            yield texts[first:index]
            first, characters = index, 0
        characters += len(text)
    if texts:
        yield texts[first:]
