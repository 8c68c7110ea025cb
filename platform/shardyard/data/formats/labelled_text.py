"""Texts, or pairs of texts, with class labels.

Legend: T = sequence length in tokens, C = classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from shardyard.data.formats.classes import Classes
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.masked import padding
from shardyard.data.formats.sentences import check_positions, has_segments
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.data.tokenizers.tokenizer import plain_backend


class Labelled(TypedDict):
    """An example: a text, or a pair of texts, and the index of its class."""

    text: str
    text_pair: NotRequired[str]
    label: int


class LabelledText(ExampleRows):
    """Rows of one example each, with the special tokens that the tokenizer puts around a text or a pair.

    Long texts are truncated at the end, pairs at the end of the longer text. A row has `input_ids`, `attention_mask`
    and, for a model with segments, `token_type_ids`, int64 [≤ T] each, and `labels`, a scalar. The rows of an
    encoder–decoder end with the end token, which its classifier reads.

    Raises:
        DataError: the tokenizer has no padding token, the model has too few positions.
        UnusableRowError: from `row`, a label that is none of the model's classes.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        tokenizer = inputs.text_tokenizer
        check_positions(inputs.sequence_length, inputs.model)
        self._backend = plain_backend(tokenizer)
        self._length = inputs.sequence_length
        self._num_special = {pair: tokenizer.num_special_tokens_to_add(pair=pair) for pair in (False, True)}
        self._classes = Classes(inputs.model)
        self._segments = has_segments(inputs.model)
        self.fill = padding(tokenizer)
        self._end = self._missing_end(inputs.model)

    def _missing_end(self, model: Any) -> list[int]:
        """The end token of an encoder–decoder, if the tokenizer puts none at the end of a text."""
        end = getattr(model, "eos_token_id", None)
        if not getattr(model, "is_encoder_decoder", False) or end is None:
            return []
        whole = self._backend.post_process(self._backend.encode("a", add_special_tokens=False)).ids
        return [] if whole[-1:] == [end] else [end]

    def row(self, piece: Labelled, generator: np.random.Generator) -> Row:
        """The row of an example with `text`, `label` and possibly `text_pair`."""
        row = self.encoded([piece["text"], *([piece["text_pair"]] if "text_pair" in piece else [])])
        row["labels"] = np.array(self._classes.number_of(piece["label"]))
        return row

    def encoded(self, texts: Sequence[str]) -> Row:
        """The model's inputs for a text or a pair of texts."""
        parts = [self._backend.encode(text, add_special_tokens=False) for text in texts]
        room = self._length - self._num_special[len(parts) > 1] - len(self._end)
        lengths = _shares([len(part) for part in parts], room)
        for part, length in zip(parts, lengths, strict=True):
            self.num_cut += len(part) - length
            part.truncate(length)
        joined = self._backend.post_process(parts[0], parts[1] if len(parts) > 1 else None)
        names = {"input_ids": joined.ids + self._end, "attention_mask": joined.attention_mask + [1] * len(self._end)}
        names |= {"token_type_ids": joined.type_ids} if self._segments else {}
        return {name: np.array(values, dtype=np.int64) for name, values in names.items()}

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors: [B, ≤ T], and [B] for `labels`."""
        return collate(rows, self.fill)


def _shares(lengths: list[int], room: int) -> list[int]:
    """The kept length of each text: all of it, or after truncating the longest until all fit."""
    if sum(lengths) <= room:
        return lengths
    if len(lengths) == 1:
        return [room]
    first, second = lengths
    short = min(first, second, room // 2)
    return [short, room - short] if first <= second else [room - short, short]


def make(inputs: FormatInputs) -> LabelledText:
    """Create the format from its inputs."""
    return LabelledText(inputs)
