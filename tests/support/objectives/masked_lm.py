"""masked_lm in small: hidden words of made-up sentences."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.wordpieces import save_tokenizer, sentences

MODEL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def write_data(folder: Path) -> Path:
    """Documents as JSON Lines, and the tokenizer beside them."""
    generator = random.Random(1)
    save_tokenizer(folder)
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": sentences(generator)}) + "\n" for _ in range(200)))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """RoBERTa, whose positions begin after the padding's id, with whole words hidden."""
    return {
        "name": "tiny-masked",
        "model": {"family": "roberta", "config": MODEL, "dropout": 0.0},
        "objective": "masked_lm",
        "tokenizer": str(data.parent / "tokenizer"),
        "masking": {"whole_word": True},
        "data": {
            "sequence_length": 32,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(data), "holdout": 0.2}],
        },
        "train": {"steps": 8, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 3e-3},
        "schedule": {"name": "constant", "warmup": 2},
        "checkpoint": {"every": 4},
        "evaluate": {"every": 4, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
