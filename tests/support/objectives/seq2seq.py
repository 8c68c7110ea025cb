"""A tiny translation task: into the same words in reverse order."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.tiny import WORDS


def write_data(folder: Path) -> Path:
    """JSON Lines of synthetic sentences and their reversals."""
    generator = random.Random(0)
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for _ in range(200):
            words = generator.choices(WORDS, k=generator.randint(1, 5))
            file.write(json.dumps({"english": " ".join(words), "other": " ".join(reversed(words))}) + "\n")
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """A Transformer of 2017 in two layers a side, with label smoothing, decoded at evaluation."""
    return {
        "name": "tiny-seq2seq",
        "model": {
            "family": "marian",
            "config": {
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 2,
                "encoder_attention_heads": 2,
                "decoder_attention_heads": 2,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
                "max_position_embeddings": 48,
            },
            "dropout": 0.0,
        },
        "objective": "seq2seq",
        "loss": {"label_smoothing": 0.1},
        "data": {
            "sequence_length": 24,
            "source_length": 32,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data), "holdout": 0.2, "columns": {"source": "english", "target": "other"}}],
        },
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1},
        "schedule": {"name": "inverse_sqrt", "warmup": 4},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 8, "generate_rows": 5, "beams": 2},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
