"""Pictures of any shape as patches in one list, for encoders that keep the aspect ratio (NaFlex of SigLIP 2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from transformers import Siglip2ImageProcessorPil

from shardyard.data.media.images import decoded
from shardyard.data.multimodal.augment import augmented
from shardyard.data.stream.rows import Row
from shardyard.recipe import schema
from shardyard.recipe.image_shape import takes_any_shape


class PatchTransform:
    """Makes of a picture what the processor of SigLIP 2 makes of it: as many whole patches as the model takes, with the
    aspect ratio of the picture.

    Args:
        settings: the recipe's section; `min_scale`, `rotate` and `flip` change the picture before it is resized.
        config: of a model for which `takes_any_shape`.

    Attributes:
        own: transformers' processor, as it is exported.
    """

    def __init__(self, settings: schema.Image, config: Any) -> None:
        vision = config.vision_config
        self._settings = settings
        self.own = Siglip2ImageProcessorPil(
            patch_size=vision.patch_size,
            max_num_patches=vision.num_patches,
            image_mean=_channels(settings.mean),
            image_std=_channels(settings.std),
        )

    def tensors(self, value: Any, generator: np.random.Generator | None) -> Row:
        """`pixel_values` float32 [N, P·P·3], `pixel_attention_mask` int64 [N] and `spatial_shapes` int64 [2].

        Args:
            value: as `ImageTransform.tensor` takes it.
            generator: for augmentation; None for evaluation.

        Raises:
            DataError: the image cannot be decoded.
        """
        picture = decoded(value, "RGB")
        if generator is not None:
            picture = augmented(picture, self._settings, generator)
        found = self.own(picture, return_tensors="np")
        return {
            "pixel_values": np.asarray(found["pixel_values"][0], np.float32),
            "pixel_attention_mask": np.asarray(found["pixel_attention_mask"][0], np.int64),
            "spatial_shapes": np.asarray(found["spatial_shapes"][0], np.int64),
        }


def patch_transform(settings: schema.Image, config: Any) -> PatchTransform | None:
    """The transform for a model that takes pictures of any shape; None for others."""
    return PatchTransform(settings, config) if takes_any_shape(config) else None


def _channels(values: list[float]) -> list[float]:
    return values * 3 if len(values) == 1 else values
