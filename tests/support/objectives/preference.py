"""Prompts with a chosen and a rejected answer, for a tiny pretrained model."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.pretrained import write_pretrained
from support.tiny import WORDS


def write_data(folder: Path) -> Path:
    """JSON Lines of pairs, beside the folder `model`."""
    write_pretrained(folder / "model", "gpt2", n_positions=96)
    generator = random.Random(6)
    path = folder / "preferences.jsonl"
    with path.open("w") as file:
        for number in range(200):
            word, other = generator.sample(WORDS, 2)
            row = {
                "prompt": f"say {word}, number {number}",
                "chosen": " ".join([word] * generator.randint(1, 4)),
                "rejected": other,
            }
            file.write(json.dumps(row) + "\n")
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """Two layers, eight steps."""
    return {
        "name": "preference",
        "objective": "preference",
        "model": {"family": "gpt2", "pretrained": str(data.parent / "model"), "dropout": 0.0},
        "preference": {"beta": 0.5},
        "data": {
            "sequence_length": 48,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data), "holdout": 0.2}],
        },
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant"},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
