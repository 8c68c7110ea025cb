"""A tiny CLAP on tones with their letters as descriptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.families import sound

CONFIG: dict[str, Any] = {
    "text_config": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 300,
    },
    "audio_config": {
        "num_mel_bins": 16,
        "spec_size": 64,
        "patch_size": 4,
        "patch_stride": [4, 4],
        "window_size": 4,
        "depths": [1, 1],
        "num_attention_heads": [2, 2],
        "num_hidden_layers": 2,
        "patch_embeds_hidden_size": 8,
        "hidden_size": 16,
    },
    "projection_dim": 16,
}


def write_data(folder: Path) -> Path:
    """Recordings with the letters that they spell: 64 rows for training, 7 held out."""
    return sound.write_data(folder)


def recipe_fields(data: Path) -> dict[str, Any]:
    """Two layers on both sides."""
    return {
        "name": "tiny-clap",
        "model": {"family": "clap", "config": CONFIG, "dropout": 0.0},
        "objective": "audio_contrastive",
        "tokenizer": "bytes",
        "data": {
            "sequence_length": 16,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data / "train.parquet")}],
            "validation": [{"path": str(data / "validation.parquet")}],
        },
        "audio": {"seconds": 1.0, "shift": 0.1},
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 7},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
