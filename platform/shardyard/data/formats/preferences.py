"""Pairs of answers to the same prompt: chosen and rejected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shardyard.data.chat import add_chat_template, encode_conversation
from shardyard.data.formats.conversations import answer_row, padding
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row, Tensors, collate

ANSWERS = ("chosen", "rejected")


class PreferenceRows(ExampleRows):
    """`chosen_…` and `rejected_…`: `input_ids`, `attention_mask`, `labels` [T] of the prompt with each answer."""

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__()
        self._tokenizer = inputs.text_tokenizer
        add_chat_template(self._tokenizer)
        self._length = inputs.sequence_length
        fill = padding(self._tokenizer)
        self._fill = {f"{answer}_{name}": value for answer in ANSWERS for name, value in fill.items()}

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """An example {prompt, chosen, rejected}, texts."""
        row: Row = {}
        for answer in ANSWERS:
            messages = [
                {"role": "user", "content": piece["prompt"]},
                {"role": "assistant", "content": piece[answer]},
            ]
            made, cut = answer_row(encode_conversation(self._tokenizer, messages), self._length)
            row |= {f"{answer}_{name}": array for name, array in made.items()}
            self.num_cut += cut
        return row

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """Tensors [B, T] by name; chosen and rejected answers are each padded to their own longest row."""
        return collate(rows, self._fill)


def make(inputs: FormatInputs) -> PreferenceRows:
    """Create the format from its inputs."""
    return PreferenceRows(inputs)
