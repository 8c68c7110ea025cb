"""Questions on made-up words with answers, as conversations of one or two turns."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.tiny import CONFIGS, WORDS


def write_data(folder: Path) -> Path:
    """JSON Lines of conversations."""
    generator = random.Random(5)
    path = folder / "conversations.jsonl"
    with path.open("w") as file:
        for _ in range(200):
            messages = []
            for _ in range(generator.choice((1, 1, 2))):
                word = generator.choice(WORDS)
                messages += [
                    {"role": "user", "content": f"say {word} {generator.choice(('once', 'twice'))}"},
                    {"role": "assistant", "content": " ".join([word] * generator.randint(1, 3))},
                ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """Two layers, eight steps."""
    return {
        "name": "instruction",
        "objective": "instruction",
        "model": {"family": "llama", "config": CONFIGS["llama"], "dropout": 0.0},
        "data": {
            "sequence_length": 64,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data), "holdout": 0.2}],
        },
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "constant"},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
