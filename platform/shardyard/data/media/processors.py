"""Processors that are saved with an exported model, so that its inputs are prepared as in training."""

from __future__ import annotations

from typing import Any

from transformers import CLIPImageProcessorPil

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.media.audio import feature_extractor
from shardyard.data.media.images import ImageTransform
from shardyard.objectives.registry import objective_spec


def make_processor(objective: str, inputs: FormatInputs) -> Any:
    """Something with `save_pretrained`, or None for an objective that reads text alone."""
    if "audio" in objective_spec(objective).sections:
        return feature_extractor(inputs.model)
    if "image" not in objective_spec(objective).sections:
        return None
    return image_processor(ImageTransform.for_model(inputs.image, inputs.model))


def image_processor(transform: ImageTransform) -> CLIPImageProcessorPil:
    """The processor of transformers whose tensors are those of an evaluation here, to rounding in fp32.

    `AutoImageProcessor` loads it for any model. It neither turns images by their EXIF orientation nor makes grey ones
    of images in colour, and where torchvision is installed, AutoImageProcessor takes that unless told
    `backend="pil"`; torchvision resizes with other rounding.
    """
    height, width = transform.size
    square = height == width
    size = {"shortest_edge": height} if square else {"height": height, "width": width}
    return CLIPImageProcessorPil(
        size=size,
        do_center_crop=square,
        crop_size={"height": height, "width": width},
        image_mean=list(transform.mean),
        image_std=list(transform.std),
        do_convert_rgb=transform.channels == 3,
    )
