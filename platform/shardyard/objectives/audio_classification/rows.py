"""Recordings with class labels."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from shardyard.data.formats.classes import Classes
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.recordings import Recordings
from shardyard.data.stream.rows import Row


class LabelledRecording(TypedDict):
    """An example; `audio` is an input of `read_audio`."""

    audio: object
    label: int | str


class LabelledRecordings(Recordings):
    """Rows of what the model hears (`data/media/listening.py`) and `labels` (a scalar)."""

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        self._classes = Classes(inputs.model)

    def row(self, piece: LabelledRecording, generator: np.random.Generator) -> Row:
        """The row of an example.

        Raises:
            UnusableRowError: the recording is too long, or the label is not one of the model's classes.
        """
        label = self._classes.number_of(piece["label"])
        return {**self.heard(self.samples(piece, generator), generator), "labels": np.array(label)}


def make(inputs: FormatInputs) -> LabelledRecordings:
    """Create the format from its inputs."""
    return LabelledRecordings(inputs)
