"""text_classification in small: pairs of texts in six classes."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.objectives import masked_lm
from support.tiny import WORDS
from support.wordpieces import save_tokenizer, sentences

CLASSES = 6


def write_data(folder: Path) -> Path:
    """The class is the first word of the second text; the tokenizer lies beside the file."""
    generator = random.Random(2)
    save_tokenizer(folder)
    rows = []
    for _ in range(200):
        label = generator.randrange(CLASSES)
        rows.append({"text": sentences(generator, most=2), "text_pair": f"{WORDS[label]} step", "label": label})
    path = folder / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT with a classifier on top."""
    config = {**masked_lm.MODEL, "num_labels": CLASSES}
    fields = masked_lm.recipe_fields(data)
    del fields["masking"]
    model = {"family": "bert", "config": config, "dropout": 0.0}
    return {**fields, "name": "tiny-classes", "model": model, "objective": "text_classification"}
