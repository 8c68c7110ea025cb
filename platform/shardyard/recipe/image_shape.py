"""The input image shape of a model, from its configuration and `image.size`. Pure."""

from __future__ import annotations

from typing import Any

from shardyard.recipe.schema import Image

# For families that accept any size and define none (ResNet, ConvNeXt): the size of ImageNet crops.
DEFAULT_SIZE = 224


# Families whose pictures are lists of patches that keep the aspect ratio.
PATCHED = frozenset({"siglip2"})


def takes_any_shape(config: Any) -> bool:
    """Whether a model of images and texts reads patches of pictures of any shape."""
    return config.model_type in PATCHED


def image_shape(image: Image, config: Any) -> tuple[int, int, int]:
    """(channels, height, width) for a transformers configuration, or for its vision part if it has several.

    `image.size` takes precedence over the configuration.
    """
    vision = getattr(config, "vision_config", None) or config
    size = image.size or getattr(vision, "image_size", None) or DEFAULT_SIZE
    height, width = (size, size) if isinstance(size, int) else size
    return int(getattr(vision, "num_channels", 3)), int(height), int(width)
