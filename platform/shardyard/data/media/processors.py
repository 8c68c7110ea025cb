"""What is saved with an exported model beside its tokenizer, so that inputs are prepared as in training."""

from __future__ import annotations

from typing import Any

from transformers import CLIPImageProcessorPil

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.sentence_modules import SentenceModules
from shardyard.data.media.audio import feature_extractor
from shardyard.data.media.images import ImageTransform
from shardyard.data.multimodal.plain import plain_processor
from shardyard.objectives.registry import objective_spec


def make_processor(objective: str, inputs: FormatInputs) -> Any:
    """An object with `save_pretrained`, or None for objectives whose models need only a tokenizer."""
    if inputs.processor is not None:
        return inputs.processor
    if "embedding" in objective_spec(objective).sections:
        return SentenceModules.for_model(inputs)
    if "audio" in objective_spec(objective).sections:
        return feature_extractor(inputs.model)
    if "image" not in objective_spec(objective).sections:
        return None
    found = image_processor(ImageTransform.for_model(inputs.image, inputs.model))
    if objective_spec(objective).rows == "image_answers":
        return plain_processor(inputs, found) or found
    return found


def image_processor(transform: ImageTransform) -> CLIPImageProcessorPil:
    """The transformers processor that gives the same tensors as evaluation here, up to fp32 rounding.

    `AutoImageProcessor` loads it for any model. It neither applies the EXIF orientation nor converts colour images to
    grey. If torchvision is installed, AutoImageProcessor uses it unless given `backend="pil"`; torchvision rounds
    differently when resizing.
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
