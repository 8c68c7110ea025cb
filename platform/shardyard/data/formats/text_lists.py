"""Rows of several texts each, which the model reads one by one.

Legend: K = texts of a row, T = tokens of a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from shardyard.data.formats.labelled_text import LabelledText
from shardyard.data.stream.rows import Row, Tensors, collate

# Labels of texts that a row does not have.
ABSENT = -1


class TextLists(LabelledText):
    """Base of formats whose rows have `input_ids`, `attention_mask` and perhaps `token_type_ids` [K, T]."""

    def listed(self, texts: Sequence[Sequence[str]]) -> Row:
        """The model's inputs for texts or pairs of texts, padded to the longest."""
        rows = [self.encoded(parts) for parts in texts]
        return {name: values.numpy() for name, values in collate(rows, self.fill).items()}

    def collate(self, rows: Sequence[Row]) -> Tensors:
        """int64 tensors [B, K, T]; other arrays [B] or [B, K], with -1 for texts that a row does not have.

        In the place of such a text is the first of its row, because a model may not get a row of padding alone.
        """
        inputs = {name for name, values in rows[0].items() if values.ndim == 2}
        size = tuple(max(row["input_ids"].shape[axis] for row in rows) for axis in (0, 1))
        rest = [{name: values for name, values in row.items() if name not in inputs} for row in rows]
        found = {name: torch.stack([_filled(row, name, size, self.fill) for row in rows]) for name in sorted(inputs)}
        return found | collate(rest, {"labels": ABSENT})


def _filled(row: Row, name: str, size: tuple[int, ...], fill: Mapping[str, float]) -> torch.Tensor:
    values = row[name]
    texts, length = values.shape
    filled = np.full(size, fill[name], dtype=values.dtype)
    filled[:texts, :length] = values
    filled[texts:] = filled[0]
    return torch.from_numpy(filled)
