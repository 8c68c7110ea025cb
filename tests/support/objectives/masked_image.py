"""A tiny recipe of the objective masked_image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.images import SIZE, image_fields, write_images

MAE: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 3,
    "num_channels": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
    "norm_pix_loss": True,
}


def write_data(folder: Path) -> Path:
    """Images with a square in one of three places."""
    return write_images(folder)


def recipe_fields(data: Path) -> dict[str, Any]:
    """A masked autoencoder of two and one layers."""
    return image_fields(data, "masked_image", {"family": "vit_mae", "config": MAE})
