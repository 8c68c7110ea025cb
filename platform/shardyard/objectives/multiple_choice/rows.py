"""Rows of questions with several choices.

Legend: K = choices of a row, T = tokens of a choice with its question.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import numpy as np
import torch

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.text_lists import TextLists
from shardyard.data.stream.rows import Row
from shardyard.errors import UnusableRowError
from shardyard.recipe.schema import Data, Image

# The cost of a row is counted for this many choices, as most data sets have.
USUAL_CHOICES = 4
_SHOWN = 60


class Choice(TypedDict):
    """An example: a question, its choices, and the index of the right one; perhaps a context before the question."""

    question: str
    choices: list[str]
    label: int
    context: NotRequired[str]


class ChoiceRows(TextLists):
    """`input_ids`, `attention_mask` and, for a model with segments, `token_type_ids`, int64 [K, T], and the scalars
    `labels` and `num_choices`.

    Each choice is paired with the question; with a context, the context is paired with question and choice (SWAG:
    `context` sent1, `question` sent2). Pairs are cut at the end of the longer text.

    Raises:
        DataError: the tokenizer has no padding token, the model has too few positions.
        UnusableRowError: from `row`, fewer than two choices, or a label that is none of them.
    """

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of an example with `question`, `choices`, `label` and perhaps `context`."""
        question, choices, label = piece["question"], piece["choices"], piece["label"]
        if len(choices) < 2 or isinstance(label, str) or not 0 <= label < len(choices):
            shown = question if len(question) <= _SHOWN else question[:_SHOWN] + "…"
            raise UnusableRowError(
                "a question needs at least two choices, and the index of the right one, counted from 0",
                f"{shown!r} has {len(choices)} choices and the label {label!r}",
            )
        context = piece.get("context")
        pairs = [[question, choice] if context is None else [context, f"{question} {choice}"] for choice in choices]
        return self.listed(pairs) | {"labels": np.array(label), "num_choices": np.array(len(choices))}


def row_shape(config: Any, data: Data, image: Image) -> tuple[dict[str, torch.Tensor], int]:
    """The model's inputs of a row with the usual number of choices, and its tokens (`models/size/row_shapes.py`)."""
    assert data.sequence_length is not None, "checked with the recipe"
    shape = (1, USUAL_CHOICES, data.sequence_length)
    return {"input_ids": torch.zeros(shape, dtype=torch.long, device="meta")}, USUAL_CHOICES * data.sequence_length


def make(inputs: FormatInputs) -> ChoiceRows:
    """Create the format from its inputs."""
    return ChoiceRows(inputs)
