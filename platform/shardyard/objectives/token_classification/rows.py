"""Rows of words with a tag each.

Legend: T = tokens of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
from tokenizers import Encoding

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.masked import padding
from shardyard.data.formats.sentences import check_positions, has_segments
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.packing import IGNORED
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.tokenizers.tokenizer import plain_backend
from shardyard.errors import UnusableRowError

_SHOWN_WORDS = 6


class TaggedWords(TypedDict):
    """An example: words, and for each the index or the name of its tag."""

    tokens: list[str]
    tags: list[int] | list[str]


class TaggedRows(ExampleRows):
    """Rows of one example each; long ones are cut at the end.

    The model reads the words joined by spaces, which is what a tokenizer makes of a text and of words alike. A row has
    `input_ids`, `attention_mask` and, for a model with segments, `token_type_ids`, and `labels`: the tag of a word at
    its first token, -100 elsewhere; int64 [≤ T] each. A word that the tokenizer drops, such as a control character, has
    no target.

    Raises:
        DataError: the tokenizer has no padding token, the model has too few positions.
        UnusableRowError: from `row`, tags that do not fit the words or the model's classes.
    """

    drops = True

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        tokenizer = inputs.text_tokenizer
        check_positions(inputs.sequence_length, inputs.model)
        self._backend = plain_backend(tokenizer)
        self._room = inputs.sequence_length - tokenizer.num_special_tokens_to_add(pair=False)
        self._names: dict[int, str] = dict(inputs.model.id2label)
        self._numbers = {name: number for number, name in self._names.items()}
        self._segments = has_segments(inputs.model)
        self._padding = padding(tokenizer)

    def row(self, piece: TaggedWords, generator: np.random.Generator) -> Row:
        """The row of an example with `tokens` and `tags`."""
        words, classes = piece["tokens"], self._classes(piece)
        encoding = self._backend.encode(" ".join(words), add_special_tokens=False)
        self.num_cut += max(0, len(encoding) - self._room)
        encoding.truncate(self._room)
        labels = [IGNORED] * len(encoding)
        for token, word in first_tokens(encoding, words):
            labels[token] = classes[word]
        whole = self._backend.post_process(encoding)
        inside = iter(labels)
        names = {"input_ids": whole.ids, "attention_mask": whole.attention_mask}
        names |= {"token_type_ids": whole.type_ids} if self._segments else {}
        names["labels"] = [IGNORED if special else next(inside) for special in whole.special_tokens_mask]
        return {name: np.array(values, dtype=np.int64) for name, values in names.items()}

    def _classes(self, piece: TaggedWords) -> list[int]:
        words, tags = piece["tokens"], piece["tags"]
        if len(words) != len(tags):
            raise UnusableRowError(
                "an example needs one tag a word", f"{_shown(words)} has {len(words)} words and {len(tags)} tags"
            )
        return [self._class(tag, words) for tag in tags]

    def _class(self, tag: object, words: Sequence[str]) -> int:
        number = self._numbers.get(tag) if isinstance(tag, str) else tag
        if isinstance(number, int) and number in self._names:
            return number
        if isinstance(tag, str):
            known = ", ".join(self._numbers)
            told = f"{tag!r}; model.labels names {known}: add it there"
        else:
            number_of = len(self._names)
            told = f"{tag}, but the model has {number_of} classes, 0 to {number_of - 1}; name all in model.labels"
        raise UnusableRowError("a tag that is no class of the model", f"{_shown(words)} has the tag {told}")

    def learns(self, row: Row) -> bool:
        """Whether a word is left; the tokenizer may drop all of them."""
        return bool((row["labels"] != IGNORED).any())

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors [B, ≤ T]."""
        return collate(rows, self._padding)


def _shown(words: Sequence[str]) -> str:
    """The beginning of an example, by which to find it."""
    more = " …" if len(words) > _SHOWN_WORDS else ""
    return f"the example {' '.join(words[:_SHOWN_WORDS])!r}{more}"


def first_tokens(encoding: Encoding, words: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(token, word) for the first token of each word in the joined words.

    A token may begin with the space before its word.
    """
    text = " ".join(words)
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    last = -1
    for token, (begin, end) in enumerate(encoding.offsets):
        own = text[begin:end]
        at = begin + len(own) - len(own.lstrip())
        word = int(np.searchsorted(starts, at, side="right")) - 1
        if at < end and word > last:
            yield token, word
            last = word


def make(inputs: FormatInputs) -> TaggedRows:
    """Create the format from its inputs."""
    return TaggedRows(inputs)
