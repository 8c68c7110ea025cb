"""Images with class labels."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardyard.data.formats.classes import Classes
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.images import ImageTransform
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row


class LabelledImages(ExampleRows):
    """Rows of `pixel_values` [C, H, W] and `labels` (a scalar)."""

    def __init__(self, transform: ImageTransform, classes: Classes, *, training: bool) -> None:
        super().__init__()
        self._transform, self._classes, self._training = transform, classes, training

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of an example; augmented in training."""
        label = self._classes.number_of(piece["label"])
        pixels = self._transform.tensor(piece["image"], generator if self._training else None)
        return {"pixel_values": pixels, "labels": np.array(label)}


def make(inputs: FormatInputs) -> LabelledImages:
    """Create the format from its inputs."""
    transform = ImageTransform.for_model(inputs.image, inputs.model)
    return LabelledImages(transform, Classes(inputs.model), training=inputs.training)
