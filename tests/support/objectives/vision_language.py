"""A tiny LLaVA on questions about coloured squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from support.objectives.contrastive import COLOURS, PLACES, SIZE, image


def write_data(folder: Path) -> Path:
    """Parquet with `image`, `prompt` and `response`: 96 questions, of which eight are held out."""
    data = folder / "questions"
    data.mkdir(exist_ok=True)
    rows = [
        {"image": {"bytes": image(colour, place, shade), "path": f"{colour}-{place}.png"}, "prompt": f"{asked}?"}
        | {"response": colour if asked == "Colour" else place}
        for shade in range(100, 220, 40)
        for colour in COLOURS
        for place in PLACES
        for asked in ("Colour", "Place")
    ]
    rows = [rows[index] for index in np.random.default_rng(0).permutation(len(rows))]
    pq.write_table(pa.Table.from_pylist(rows[8:]), data / "train.parquet")
    pq.write_table(pa.Table.from_pylist(rows[:8]), data / "validation.parquet")
    return data


def recipe_fields(data: Path) -> dict[str, Any]:
    """Two layers on both sides, four tokens an image; the lower half of the encoder is not trained."""
    side = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {
        "name": "tiny-llava",
        "model": {
            "family": "llava",
            "config": {
                "text_config": {**side, "model_type": "llama", "max_position_embeddings": 64},
                "vision_config": {**side, "model_type": "clip_vision_model", "image_size": SIZE, "patch_size": 8},
            },
            "dropout": 0.0,
            "freeze": ["model.vision_tower.*.layers.0.*"],
        },
        "objective": "vision_language",
        "tokenizer": "bytes",
        "data": {
            "sequence_length": 64,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data / "train.parquet")}],
            "validation": [{"path": str(data / "validation.parquet")}],
        },
        "image": {"crop_padding": 2},
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
