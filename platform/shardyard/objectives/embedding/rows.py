"""Rows of a query, a text that belongs to it, and perhaps one that does not.

Legend: T = sequence length in tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NotRequired, TypedDict

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.labelled_text import LabelledText
from shardyard.data.stream.rows import Row, Tensors, collate
from shardyard.errors import DataError

SIDES = ("query", "positive", "negative")


class Pair(TypedDict):
    """An example; `negative` is a text like `positive` that does not belong to the query."""

    query: str
    positive: str
    negative: NotRequired[str]


class EmbeddingRows(LabelledText):
    """`query_…`, `positive_…` and perhaps `negative_…`: `input_ids`, `attention_mask` and, for a model with segments,
    `token_type_ids`, int64 [≤ T] each. Long texts are cut at the end.

    Raises:
        DataError: the tokenizer has no padding token, the model has too few positions; from `row`: no negative, where
            the loss needs one.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        settings = inputs.embedding
        self._prompts = (settings.query_prompt, settings.document_prompt, settings.document_prompt)
        self._needs_negative = settings.loss == "triplet"
        self.fill = {f"{side}_{name}": value for side in SIDES for name, value in self.fill.items()}

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of an example with `query`, `positive` and perhaps `negative`."""
        if self._needs_negative and "negative" not in piece:
            raise DataError(
                "embedding.loss: triplet compares with a negative, and the data has no such column; name it with "
                "columns: {negative: …}, or use info_nce."
            )
        row: Row = {}
        for side, prompt in zip(SIDES, self._prompts, strict=True):
            if side in piece:
                row |= {f"{side}_{name}": values for name, values in self.encoded([prompt + piece[side]]).items()}
        return row

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors [B, ≤ T].

        Raises:
            DataError: only some of the rows have a negative.
        """
        if len({frozenset(row) for row in rows}) > 1:
            raise DataError("some sources have a column `negative` and others do not; give all of them one, or none.")
        return collate(rows, self.fill)


def make(inputs: FormatInputs) -> EmbeddingRows:
    """Create the format from its inputs."""
    return EmbeddingRows(inputs)
