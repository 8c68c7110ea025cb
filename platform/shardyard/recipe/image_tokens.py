"""The number of tokens of an image in a model that reads images and text. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shardyard.recipe.image_shape import image_shape
from shardyard.recipe.schema import Image, Model

# Encoders whose first position stands for the whole image (class token); SigLIP and others only have patches.
_CLASS_TOKEN = frozenset({"clip_vision_model", "vit", "deit", "dinov2", "beit"})


def sees_with_pixtral(family: str, config: Mapping[str, object]) -> bool:
    """Whether a LLaVA has Pixtral's encoder: it then has Pixtral's processor too, and every size of a picture."""
    vision = config.get("vision_config")
    return family == "llava" and isinstance(vision, Mapping) and vision.get("model_type") == "pixtral"


def uses_own_processor(model: Model, image: Image) -> bool:
    """Whether the model's own processor makes the rows of `vision_language`; else they are LLaVA's in plain format."""
    if image.processor is not None:
        return image.processor == "model"
    return model.family != "llava" or sees_with_pixtral(model.family, model.config)


def has_class_token(vision: str) -> bool:
    """Whether an encoder of this model type puts a class token before the patches."""
    return vision in _CLASS_TOKEN


def image_tokens(image: Image, config: Any) -> int:
    """Positions of one image for a configuration like LLaVA's: its patches and, with the strategy `full`, also the
    first position of the encoder."""
    _, height, width = image_shape(image, config)
    vision = config.vision_config
    patch = vision.patch_size
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    positions = (height // patch_height) * (width // patch_width) + has_class_token(vision.model_type)
    return int(positions - (config.vision_feature_select_strategy == "default"))
