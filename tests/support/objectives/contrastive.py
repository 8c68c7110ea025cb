"""A tiny CLIP on coloured squares with captions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZE = 16
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (230, 220, 40)}
PLACES = {"above": (0, 4), "below": (8, 4), "left": (4, 0), "right": (4, 8)}


def image(colour: str, place: str, shade: int) -> bytes:
    """A square of 8 pixels on a grey ground, as PNG."""
    pixels = np.full((SIZE, SIZE, 3), shade, np.uint8)
    top, left = PLACES[place]
    pixels[top : top + 8, left : left + 8] = COLOURS[colour]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write_data(folder: Path) -> Path:
    """Parquet with `image`, `text` and `colour`: 96 pairs, of which seven are held out: ranks have unequal shares."""
    data = folder / "pairs"
    data.mkdir(exist_ok=True)
    rows = [
        {
            "image": {"bytes": image(c, p, shade), "path": f"{c}-{p}.png"},
            "text": f"{c} square {p} on grey {shade}",
            "colour": c,
        }
        for shade in range(100, 220, 20)
        for c in COLOURS
        for p in PLACES
    ]
    rows = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(rows[7:]), data / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:7]), data / "validation.parquet")
    return data


def recipe_fields(data: Path) -> dict[str, Any]:
    """Two layers on both sides."""
    side = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "name": "tiny-clip",
        "model": {
            "family": "clip",
            "config": {
                "projection_dim": 16,
                "text_config": {**side, "max_position_embeddings": 48},
                "vision_config": {**side, "image_size": SIZE, "patch_size": 8},
            },
            "dropout": 0.0,
        },
        "objective": "contrastive",
        "tokenizer": "bytes",
        "data": {
            "sequence_length": 48,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data / "train.parquet")}],
            "validation": [{"path": str(data / "validation.parquet")}],
        },
        "image": {"crop_padding": 2, "flip": True},
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 7},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
