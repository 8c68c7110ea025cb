"""Pictures with the class that each belongs to."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardyard.data.formats.inputs import Context
from shardyard.data.media.images import Pictures
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row
from shardyard.errors import DataError


class LabelledImages(ExampleRows):
    """Rows of `pixel_values` [C, H, W] and `labels` (a scalar)."""

    def __init__(self, pictures: Pictures, num_labels: int, *, training: bool) -> None:
        super().__init__()
        self._pictures, self._num_labels, self._training = pictures, num_labels, training

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """Augmented in training."""
        label = int(piece["label"])
        if not 0 <= label < self._num_labels:
            raise DataError(
                f"a picture has the label {label}, and the model has {self._num_labels} classes, counted from 0; set "
                "num_labels in model.config to the number of classes."
            )
        pixels = self._pictures.tensor(piece["image"], generator if self._training else None)
        return {"pixel_values": pixels, "labels": np.array(label)}


def make(context: Context) -> LabelledImages:
    """From its context."""
    pictures = Pictures.for_model(context.image, context.model)
    return LabelledImages(pictures, context.model.num_labels, training=context.training)
