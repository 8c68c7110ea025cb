"""token_classification in small: words that are spelled in pieces, and a few others, are entities."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.objectives import masked_lm
from support.tiny import WORDS
from support.wordpieces import save_tokenizer

TAGS = ("O", "B-LONG", "I-LONG", "B-SHORT")
LONG = ("weight", "token")


def write_data(folder: Path) -> Path:
    """Words that the tokenizer spells in pieces are entities of one kind, a few others of another."""
    generator = random.Random(4)
    save_tokenizer(folder)
    rows = []
    for _ in range(200):
        words = generator.choices([*WORDS, *LONG, *LONG], k=generator.randint(3, 12))
        tags = [_tag(words, at) for at in range(len(words))]
        rows.append({"tokens": words, "tags": tags})
    path = folder / "tagged.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _tag(words: list[str], at: int) -> str:
    if words[at] in LONG:
        return "I-LONG" if at and words[at - 1] in LONG else "B-LONG"
    return "B-SHORT" if words[at] in WORDS[:3] else "O"


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT with a classifier of each token."""
    fields = masked_lm.recipe_fields(data)
    del fields["masking"]
    model = {"family": "bert", "config": masked_lm.MODEL, "labels": list(TAGS), "dropout": 0.0}
    return {**fields, "name": "tiny-tags", "model": model, "objective": "token_classification"}
