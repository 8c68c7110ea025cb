"""A tiny recipe of the objective image_classification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.images import CLASSES, SIZE, image_fields, write_images

VIT: dict[str, Any] = {
    "image_size": SIZE,
    "patch_size": 3,
    "num_channels": 1,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "num_labels": CLASSES,
}
# With batch normalisation.
RESNET: dict[str, Any] = {
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16],
    "depths": [1, 1],
    "layer_type": "basic",
    "num_labels": CLASSES,
}


def write_data(folder: Path) -> Path:
    """Images of three classes."""
    return write_images(folder)


def recipe_fields(data: Path) -> dict[str, Any]:
    """A vision transformer of two layers."""
    return image_fields(data, "image_classification", {"family": "vit", "config": VIT}, loss={"label_smoothing": 0.1})


def resnet_fields(data: Path) -> dict[str, Any]:
    """A residual network with batch normalisation, whose statistics are of four rows, on one rank as on two."""
    fields = image_fields(data, "image_classification", {"family": "resnet", "config": RESNET})
    return fields | {"train": fields["train"] | {"micro_batch": 4}}
