"""multiple_choice in small: the right choice repeats the first word of the question; two to four choices."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.objectives import masked_lm
from support.tiny import WORDS
from support.wordpieces import save_tokenizer


def write_data(folder: Path) -> Path:
    """Questions with choices of single words."""
    generator = random.Random(8)
    save_tokenizer(folder)
    rows = []
    for _ in range(200):
        choices = generator.sample(WORDS, k=generator.randint(2, 4))
        label = generator.randrange(len(choices))
        question = " ".join([choices[label], *generator.choices(WORDS, k=generator.randint(1, 6))])
        rows.append({"question": question, "choices": choices, "label": label})
    path = folder / "choices.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT with one score for each choice."""
    fields = masked_lm.recipe_fields(data)
    del fields["masking"]
    model = {"family": "bert", "config": masked_lm.MODEL, "dropout": 0.0}
    return {**fields, "name": "tiny-choices", "model": model, "objective": "multiple_choice"}
