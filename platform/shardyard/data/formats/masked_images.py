"""Images with most patches masked (He et al. 2021, Masked Autoencoders Are Scalable Vision Learners)."""

from __future__ import annotations

from typing import Any

import numpy as np

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.images import ImageTransform
from shardyard.data.stream.examples import ExampleRows
from shardyard.data.stream.rows import Row
from shardyard.errors import DataError


class MaskedImages(ExampleRows):
    """Rows of `pixel_values` [C, H, W] and `noise` [N], one number for each of the N patches.

    The model masks the patches with the largest numbers. They are part of the row instead of drawn by the model, so
    that the masked patches do not depend on rank or restarts; in evaluation they are always the same.
    """

    def __init__(self, transform: ImageTransform, patch_size: int, *, training: bool) -> None:
        super().__init__()
        height, width = transform.size
        if height % patch_size or width % patch_size or height != width:
            raise DataError(
                f"images of {height}×{width} pixels are not squares of whole patches of {patch_size}; choose "
                "image_size in model.config as a multiple of patch_size."
            )
        self._num_patches = (height // patch_size) * (width // patch_size)
        self._transform, self._training = transform, training

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of an example; augmented in training."""
        noise = generator.random(self._num_patches, np.float32)
        return {
            "pixel_values": self._transform.tensor(piece["image"], generator if self._training else None),
            "noise": noise,
        }


def make(inputs: FormatInputs) -> MaskedImages:
    """Create the format from its inputs."""
    transform = ImageTransform.for_model(inputs.image, inputs.model)
    return MaskedImages(transform, inputs.model.patch_size, training=inputs.training)
