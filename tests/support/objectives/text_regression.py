"""text_regression in small: how many words a text has."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.objectives import masked_lm
from support.tiny import WORDS
from support.wordpieces import save_tokenizer


def write_data(folder: Path) -> Path:
    """Texts with their number of words, in tens."""
    generator = random.Random(9)
    save_tokenizer(folder)
    texts = [generator.choices(WORDS, k=generator.randint(1, 20)) for _ in range(200)]
    path = folder / "numbers.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(t), "label": len(t) / 10}) + "\n" for t in texts))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT with one number for each text."""
    fields = masked_lm.recipe_fields(data)
    del fields["masking"]
    # Predictions that differ by more than their rounding, on which correlations depend.
    config = {**masked_lm.MODEL, "num_labels": 1, "initializer_range": 0.3}
    model = {"family": "bert", "config": config, "dropout": 0.0}
    regression = {"loss": "huber", "delta": 0.5}
    return {**fields, "name": "tiny-numbers", "model": model, "objective": "text_regression", "regression": regression}
