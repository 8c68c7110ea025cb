"""Recordings with class labels."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.recordings import Recordings
from shardyard.data.stream.rows import Row
from shardyard.errors import DataError


class LabelledRecording(TypedDict):
    """An example; `audio` is an input of `read_audio`."""

    audio: object
    label: int


class LabelledRecordings(Recordings):
    """Rows of what the model hears (`data/media/listening.py`) and `labels` (a scalar)."""

    def __init__(self, inputs: FormatInputs) -> None:
        super().__init__(inputs)
        self._num_labels = int(inputs.model.num_labels)

    def row(self, piece: LabelledRecording, generator: np.random.Generator) -> Row:
        """The row of an example.

        Raises:
            DataError: the label is not one of the model's classes.
            UnusableRowError: the recording is too long.
        """
        label = int(piece["label"])
        if not 0 <= label < self._num_labels:
            raise DataError(
                f"a recording has the label {label}, and the model has {self._num_labels} classes, counted from 0; set "
                "num_labels in model.config to the number of classes."
            )
        return {**self.heard(self.samples(piece, generator), generator), "labels": np.array(label)}


def make(inputs: FormatInputs) -> LabelledRecordings:
    """Create the format from its inputs."""
    return LabelledRecordings(inputs)
