"""Rows for encoder–decoders that turn one text into another, one pair of texts per row."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.target_text import PADDING, TEXT_PADDING, TargetText, TextEncoder, as_bytes, ints
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row


class Pair(TypedDict):
    """An example: a text and its translation, or an input and an output text."""

    source: str
    target: str


class Translation(ExampleRows):
    """A row is one pair of texts; padding is masked in the encoder and is not a target.

    S: tokens of the source, T: of the target, both with end token. `input_ids` and `attention_mask` int64 [S],
    `decoder_input_ids` and `labels` int64 [T]; in evaluation also both texts, `source_text` and `reference`.
    """

    padding = PADDING | TEXT_PADDING

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        self._encoder = TextEncoder(inputs)
        self._target = TargetText(inputs, self._encoder)
        self._length = inputs.data.source_length or inputs.sequence_length
        self._drop_inputs, self._training = inputs.data.drop_inputs, inputs.training

    def row(self, piece: Pair, generator: np.random.Generator) -> Row:
        """The row of one pair; with `data.drop_inputs` the source is only its end token."""
        source, cut = self._encoder.encode("" if self._drop_inputs else piece["source"], self._length)
        target, target_cut = self._target.row(piece["target"])
        self.num_cut += cut + target_cut
        row = {"input_ids": ints(source), "attention_mask": ints([1] * len(source)), **target}
        return row if self._training else {**row, "source_text": as_bytes(piece["source"])}


def make(inputs: FormatInputs) -> Translation:
    """Create the format from its inputs.

    Raises:
        DataError: the tokenizer or the model lacks a token that begins or ends a text.
    """
    return Translation(inputs)
