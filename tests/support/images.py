"""Synthetic images: PNG in Parquet, the same on every machine."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

CLASSES = 3
SIZE = 12


def png(pixels: np.ndarray[Any, Any]) -> bytes:
    """Pixels of shape (H, W) or (H, W, 3), uint8, as PNG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    return file.getvalue()


def write_images(folder: Path, count: int = 96) -> Path:
    """Grey images with noise and a bright square whose position is the class."""
    generator = np.random.Generator(np.random.Philox(7))
    rows = []
    for index in range(count):
        label = index % CLASSES
        pixels = (generator.random((SIZE, SIZE)) * 96).astype(np.uint8)
        pixels[3 * label : 3 * label + 5, 3 * label : 3 * label + 5] += 120
        rows.append({"image": {"bytes": png(pixels), "path": f"{index}.png"}, "label": label})
    path = folder / "images.parquet"
    # Small row groups, so that each stream reads its own groups.
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=8)
    return path


def image_fields(data: Path, objective: str, model: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """A complete recipe of eight steps."""
    fields: dict[str, Any] = {
        "name": objective,
        "model": model,
        "objective": objective,
        "image": {"size": SIZE, "flip": True, "crop_padding": 1, "erase": 0.3},
        "data": {"streams": 4, "shuffle_window": 16, "train": [{"path": str(data), "holdout": 0.25}]},
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.05},
        "schedule": {"name": "cosine", "warmup": 2},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    return {**fields, **sections}
