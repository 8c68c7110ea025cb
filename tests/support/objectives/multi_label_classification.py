"""multi_label_classification in small: which of four words a text contains, perhaps none."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.objectives import masked_lm
from support.tiny import WORDS
from support.wordpieces import save_tokenizer

CLASSES = list(WORDS[:4])


def write_data(folder: Path) -> Path:
    """Texts with the names of their classes."""
    generator = random.Random(10)
    save_tokenizer(folder)
    texts = [generator.choices(WORDS, k=generator.randint(1, 8)) for _ in range(200)]
    rows = [{"text": " ".join(words), "labels": [name for name in CLASSES if name in words]} for words in texts]
    path = folder / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT with a yes or no for each class."""
    fields = masked_lm.recipe_fields(data)
    del fields["masking"]
    model = {"family": "bert", "config": masked_lm.MODEL, "labels": CLASSES, "dropout": 0.0}
    return {**fields, "name": "tiny-labels", "model": model, "objective": "multi_label_classification"}
