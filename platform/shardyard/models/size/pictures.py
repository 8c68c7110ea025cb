"""The cost of a row of text with pictures, by the formulas for decoders: of the language model and of its encoder.

The processors of these models turn pictures into varying numbers of patches and read values of their inputs, which a
pass over shapes alone does not have.

    T: tokens of a row, N: patches of a picture, d: width, L: layers
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from shardyard.models.size.row_cost import PASSES, RowCost
from shardyard.planning.activations import Kept
from shardyard.planning.architecture import Architecture
from shardyard.recipe.schema import Image, Recipe

# Parts of models that look at pictures, as transformers names them.
_ENCODERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "vision_embed_tokens", "image_encoder")
# Bytes of activations of a block for each position and channel, in fp32: twice those of 16 bits (Korthikanti et al.
# 2022, section 4).
_BLOCK_BYTES = 68
_DEFAULT_PATCHES = 256


def picture_row_cost(module: nn.Module, config: PreTrainedConfig, recipe: Recipe, text: Architecture) -> RowCost:
    """The cost of a row of `data.sequence_length` tokens with one picture.

    Args:
        module: on the meta device.
        config: its configuration.
        recipe: sequence length, picture size, attention and activation checkpointing.
        text: sizes of the whole model, with the layers of its language model.
    """
    length = recipe.data.sequence_length
    assert length is not None, "checked with the recipe"
    vision = getattr(config, "vision_config", None)
    seen = sum(weight.numel() for name, weight in module.named_parameters() if _looks(name))
    patches = num_patches(vision, recipe.image)
    width = text.attention_width or text.hidden_size
    depth, d = _number(vision, "num_hidden_layers", "depth", "num_layers"), _number(vision, "hidden_size", "embed_dim")
    weights = max(0, text.matmul_parameters - seen)
    flops = 6 * weights * length + 12 * text.layers * width * length**2
    flops += 6 * seen * patches + 12 * depth * d * patches**2
    parts = [
        (length, text.hidden_size, text.layers, text.heads),
        (patches, d, depth, _number(vision, "num_attention_heads", "num_heads")),
    ]
    blocks = [
        (_BLOCK_BYTES * at * wide + (10 * heads * at**2 if recipe.model.attention == "eager" else 0), at * wide, layers)
        for at, wide, layers, heads in parts
    ]
    kept = sum(block * layers for block, _, layers in blocks)
    inputs = sum(4 * entry * layers for _, entry, layers in blocks)
    assert PASSES == 3, "6 = 2 × passes"
    found = Kept(
        blocks=kept / length,
        largest=sum(block for block, _, _ in blocks) / length,
        inputs=inputs / length,
        rest=0.0,
        pairs=0.0,
        selected=10 * inputs / length,
        count=sum(layers for _, _, layers in blocks),
    )
    return RowCost(length, float(flops), kept, found, length * text.vocabulary)


def num_patches(vision: Any, image: Image) -> int:
    """Patches of a picture that fills the encoder's size; a usual number where any size is taken."""
    size, patch = image.size or getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    if not size or not patch:
        return _DEFAULT_PATCHES
    return max(1, (_edge(size) // _edge(patch)) ** 2)


def _looks(name: str) -> bool:
    return any(part in _ENCODERS for part in name.split("."))


def _number(config: Any, *names: str) -> int:
    return next((int(value) for name in names if isinstance(value := getattr(config, name, None), int)), 0)


def _edge(size: Any) -> int:
    if isinstance(size, Mapping):
        return int(next(iter(size.values())))
    return int(size if isinstance(size, int) else size[0])
