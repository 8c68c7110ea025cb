"""Rows of texts, or pairs of texts, with any number of classes each."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.labelled_text import LabelledText
from shardyard.data.stream.rows import Row
from shardyard.errors import UnusableRowError

_SHOWN = 60


class ManyLabels(LabelledText):
    """The rows of `LabelledText`, whose `labels` are float32 [C]: 1 for each class of the text, else 0.

    Raises:
        UnusableRowError: from `row`, a label that is no class of the model.
    """

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        self._names: dict[int, str] = dict(inputs.model.id2label)
        self._numbers = {name: number for number, name in self._names.items()}

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of an example with `text`, `labels` (indices or names) and perhaps `text_pair`."""
        classes = np.zeros(len(self._names), np.float32)
        for label in piece["labels"]:
            number = self._numbers.get(label) if isinstance(label, str) else label
            if number not in self._names:
                known = ", ".join(self._numbers) if isinstance(label, str) else f"0 to {len(self._names) - 1}"
                raise UnusableRowError(
                    "a label that is no class of the model",
                    f"the text {piece['text'][:_SHOWN]!r} has the label {label!r}, and the classes of the model are "
                    f"{known}; name all of them in model.labels",
                )
            classes[number] = 1
        texts = [piece["text"], *([piece["text_pair"]] if "text_pair" in piece else [])]
        return self.encoded(texts) | {"labels": classes}


def make(inputs: FormatInputs) -> ManyLabels:
    """Create the format from its inputs."""
    return ManyLabels(inputs)
