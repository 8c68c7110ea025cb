"""causal_lm in small: packed documents of made-up sentences."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tiny import CONFIGS, write_corpus


def write_data(folder: Path) -> Path:
    """The corpus."""
    return write_corpus(folder, documents=200)


def recipe_fields(data: Path) -> dict[str, Any]:
    """GPT-2 in two layers."""
    return {
        "name": "tiny-causal",
        "objective": "causal_lm",
        "model": {"family": "gpt2", "config": CONFIGS["gpt2"], "dropout": 0.0},
        "data": {
            "sequence_length": 32,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data), "holdout": 0.2}],
        },
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
