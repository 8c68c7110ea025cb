"""The number of tokens of an image in a model that reads images and text. Pure."""

from __future__ import annotations

from typing import Any

from shardyard.recipe.image_shape import image_shape
from shardyard.recipe.schema import Image

# Encoders whose first position stands for the whole image (class token); SigLIP and others only have patches.
_CLASS_TOKEN = frozenset({"clip_vision_model", "vit", "deit", "dinov2", "beit"})


def image_tokens(image: Image, config: Any) -> int:
    """Positions of one image for a configuration like LLaVA's: its patches and, with the strategy `full`, also the
    first position of the encoder."""
    _, height, width = image_shape(image, config)
    vision = config.vision_config
    patch = vision.patch_size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    positions = (height // patch_height) * (width // patch_width) + (vision.model_type in _CLASS_TOKEN)
    return int(positions - (config.vision_feature_select_strategy == "default"))
