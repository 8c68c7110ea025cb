"""fashion-mnist: 28×28 grey images of clothes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shardyard.data.datasets.images import image, read_idx
from shardyard.data.datasets.rows import Converted, Row

CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def convert(folders: Mapping[str, Path]) -> Converted:
    """The training images, and the test images as `validation`."""
    folder = folders["dataset-fashion-mnist"] / "usr/share/datasets/fashion-mnist"
    return Converted(
        {split: _rows(folder, prefix) for split, prefix in (("train", "train"), ("validation", "t10k"))},
        {"label": CLASSES},
    )


def _rows(folder: Path, prefix: str) -> list[Row]:
    images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz")
    pairs = zip(images, labels, strict=True)
    return [
        {"image": image(pixels, f"{prefix}-{index:05d}.png"), "label": int(label)}
        for index, (pixels, label) in enumerate(pairs)
    ]
