"""Rows of texts, or pairs of texts, with a number each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.labelled_text import LabelledText
from shardyard.data.stream.rows import Row
from shardyard.errors import UnusableRowError

_SHOWN = 60


class NumberedText(LabelledText):
    """The rows of `LabelledText`, whose `labels` are a float32 scalar.

    Raises:
        DataError: from `row`, a label that is not finite.
    """

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of an example with `text`, `label` and perhaps `text_pair`."""
        label = float(piece["label"])
        if not math.isfinite(label):
            raise UnusableRowError("a label is no number", f"the text {piece['text'][:_SHOWN]!r} has {label}")
        texts = [piece["text"], *([piece["text_pair"]] if "text_pair" in piece else [])]
        return self.encoded(texts) | {"labels": np.array(label, np.float32)}


def make(inputs: FormatInputs) -> NumberedText:
    """Create the format from its inputs."""
    return NumberedText(inputs)
