"""The shapes of one row of each kind on the meta device: the model inputs with which the cost of a row is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from shardyard import plugins
from shardyard.errors import ModelError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.image_shape import image_shape, takes_any_shape
from shardyard.recipe.schema import Data, Image
from shardyard.suggest import suggestion

Inputs = dict[str, Tensor]
RowShape = Callable[[Any, Data, Image], tuple[Inputs, int]]
"""From configuration, `data` and `image` to the model's arguments [rows, …] and the positions of one row."""


def row_shape(objective: str) -> RowShape:
    """The shapes of an objective's rows.

    Raises:
        ModelError: the objective names unknown shapes.
    """
    # Decoders get here only if they are custom modules, for which no formula holds.
    name = objective_spec(objective).row_shape or "text"
    if plugins.is_reference(name):
        found: RowShape = plugins.load(name)
        return found
    if name not in _SHAPES:
        raise ModelError(f"{objective} has rows of an unknown shape {name!r}; {suggestion(name, _SHAPES)}")
    return _SHAPES[name]


def _ids(length: int) -> Tensor:
    return torch.zeros((1, length), dtype=torch.long, device="meta")


def _length(data: Data) -> int:
    assert data.sequence_length is not None, "checked with the recipe"
    return data.sequence_length


def _text(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    # Without a mask: it costs nothing, and some encoders read its values, which the meta device does not have.
    return {"input_ids": _ids(_length(data))}, _length(data)


def _text_pair(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    source, target = data.source_length or _length(data), _length(data)
    return {"input_ids": _ids(source), "decoder_input_ids": _ids(target)}, source + target


def _image(config: Any, image: Image) -> tuple[Tensor, int]:
    """Pixels [1, C, H, W] and the number of patches; convolutional models count patches of 16 pixels, as a ViT."""
    shape = image_shape(image, config)
    patch = getattr(getattr(config, "vision_config", None) or config, "patch_size", None) or 16
    height, width = (patch, patch) if isinstance(patch, int) else patch
    patches = max(1, shape[1] // height) * max(1, shape[2] // width)
    return torch.zeros((1, *shape), device="meta"), patches


def _image_only(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    pixels, patches = _image(config, image)
    # Two rows, because batch normalisation rejects a feature map of one pixel in a batch of one row.
    return {"pixel_values": pixels.expand(2, -1, -1, -1)}, patches


def _image_and_text(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    # Without a mask: the model would read its values, which the meta device does not have.
    if takes_any_shape(config):
        return _patches_and_text(config, _length(data))
    pixels, patches = _image(config, image)
    return {"input_ids": _ids(_length(data)), "pixel_values": pixels}, _length(data) + patches


def _patches_and_text(config: Any, length: int) -> tuple[Inputs, int]:
    """A square picture that fills the patches; its shape has values, because the model reads them."""
    vision = config.vision_config
    side = math.isqrt(vision.num_patches)
    pixels = torch.zeros((1, side**2, vision.num_channels * vision.patch_size**2), device="meta")
    shape = torch.tensor([[side, side]])
    return {"input_ids": _ids(length), "pixel_values": pixels, "spatial_shapes": shape}, length + side**2


def _image_within_text(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    # The image tokens are among the tokens of the row; the cost of computing them is part of the FLOPs.
    pixels, _ = _image(config, image)
    return {"input_ids": _ids(_length(data)), "pixel_values": pixels}, _length(data)


def _speech(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    heard, positions = _sound(config, data, image)
    return {**heard, "decoder_input_ids": _ids(_length(data))}, positions + _length(data)


# A recording of ten seconds at 16 kHz; a tenth of a second is ten frames of features.
_SAMPLES = 160_000
_FRAMES = 1000
# Moonshine's three convolutions, and the four frames that its streaming encoder joins.
_MOONSHINE_STRIDE = 64 * 3 * 2
_STREAMING_FRAMES = 4


def _sound(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    """A recording of ten seconds, or of the length that the configuration fixes."""
    config = getattr(config, "encoder_config", None) or getattr(config, "encoder", None) or config
    if hasattr(config, "conv_stride"):
        return _samples(math.prod(config.conv_stride))
    if config.model_type == "moonshine":
        return _samples(_MOONSHINE_STRIDE)
    if hasattr(config, "frame_ms"):
        return _samples(round(config.sample_rate * config.frame_ms / 1000) * _STREAMING_FRAMES)
    if hasattr(config, "feature_projection_input_dim"):
        return _frames(_FRAMES // 2, config.feature_projection_input_dim, getattr(config, "adaptor_stride", 1))
    if hasattr(config, "input_feat_per_channel"):
        return _frames(_FRAMES, config.input_feat_per_channel * config.input_channels, 2**config.num_conv_layers)
    if hasattr(config, "subsampling_factor"):
        return _frames(_FRAMES, config.num_mel_bins, config.subsampling_factor)
    if hasattr(config, "frequency_stride"):
        values = torch.zeros((1, config.max_length, config.num_mel_bins), device="meta")
        return {"input_values": values}, config.max_length // config.time_stride
    frames = 2 * config.max_source_positions
    return {"input_features": torch.zeros((1, config.num_mel_bins, frames), device="meta")}, frames // 2


def _sound_and_text(config: Any, data: Data, image: Image) -> tuple[Inputs, int]:
    # Without a mask, as for images and text.
    audio = config.audio_config
    frames = audio.spec_size**2 // audio.num_mel_bins
    features = torch.zeros((1, 1, frames, audio.num_mel_bins), device="meta")
    patches = (audio.spec_size // audio.patch_size) ** 2
    return {"input_ids": _ids(_length(data)), "input_features": features}, _length(data) + patches


def _samples(stride: int) -> tuple[Inputs, int]:
    return {"input_values": torch.zeros((1, _SAMPLES), device="meta")}, _SAMPLES // stride


def _frames(frames: int, bins: int, stride: int) -> tuple[Inputs, int]:
    return {"input_features": torch.zeros((1, frames, bins), device="meta")}, frames // stride


_SHAPES: dict[str, RowShape] = {
    "text": _text,
    "text_pair": _text_pair,
    "image": _image_only,
    "image_and_text": _image_and_text,
    "image_within_text": _image_within_text,
    "speech": _speech,
    "sound": _sound,
    "sound_and_text": _sound_and_text,
}
