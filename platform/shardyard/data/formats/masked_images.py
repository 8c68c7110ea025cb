"""Images with most patches masked: for masked autoencoders (He et al. 2021) and for SimMIM (Xie et al. 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True)
class Squares:
    """A grid of squares over an image, of which a share is masked.

    side: squares along the image. patches: patches along a square. masked: squares of an image that are masked.
    """

    side: int
    patches: int
    count: int

    def masked(self, generator: np.random.Generator) -> npt.NDArray[np.bool_]:
        """Whether each patch is masked, row by row."""
        chosen = np.zeros(self.side**2, bool)
        chosen[generator.permutation(self.side**2)[: self.count]] = True
        grid = chosen.reshape(self.side, self.side)
        return grid.repeat(self.patches, axis=0).repeat(self.patches, axis=1).reshape(-1)


class MaskedSquares(ExampleRows):
    """Rows of `pixel_values` [C, H, W] and `bool_masked_pos` [N], true for each of the N patches that is masked.

    Squares of several patches are masked as one (Xie et al. 2022, SimMIM, section 3.2). The number of masked patches is
    the same in each row.
    """

    def __init__(self, transform: ImageTransform, squares: Squares, *, training: bool) -> None:
        super().__init__()
        self._transform, self._squares, self._training = transform, squares, training

    def row(self, piece: Any, generator: np.random.Generator) -> Row:
        """The row of an example; augmented in training."""
        masked = self._squares.masked(generator)
        return {
            "pixel_values": self._transform.tensor(piece["image"], generator if self._training else None),
            "bool_masked_pos": masked,
        }


def _squares(inputs: FormatInputs, size: tuple[int, int]) -> Squares:
    """The grid for a recipe and a model.

    Raises:
        DataError: the sizes of image, square, patch and decoder do not fit each other.
    """
    config, (height, width) = inputs.model, size
    patch, stride = config.patch_size, config.encoder_stride
    reached = patch * 2 ** (len(config.depths) - 1) if hasattr(config, "depths") else patch
    if stride != reached:
        raise DataError(
            f"{config.model_type} predicts squares of encoder_stride {stride} pixels, and each of its last states "
            f"stands for {reached}; set encoder_stride: {reached} in model.config."
        )
    square = inputs.image.mask_size or max(stride, patch)
    if height != width or height % square or square % patch or height != config.image_size:
        raise DataError(
            f"images of {height}×{width} pixels are masked in squares of {square}, and {config.model_type} has "
            f"image_size {config.image_size} and patches of {patch}; choose image_size as a multiple of "
            "image.mask_size, and that as a multiple of patch_size."
        )
    side = height // square
    return Squares(side, square // patch, min(math.ceil(side**2 * inputs.image.mask_ratio), side**2))


def make(inputs: FormatInputs) -> MaskedImages | MaskedSquares:
    """Create the format from its inputs: by the configuration, for a masked autoencoder or for SimMIM.

    Raises:
        DataError: the images do not consist of whole patches.
    """
    transform = ImageTransform.for_model(inputs.image, inputs.model)
    if hasattr(inputs.model, "encoder_stride"):
        return MaskedSquares(transform, _squares(inputs, transform.size), training=inputs.training)
    return MaskedImages(transform, inputs.model.patch_size, training=inputs.training)
