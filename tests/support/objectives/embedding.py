"""embedding in small: sentences and the same words in reverse order, with a sentence of other words as negative."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.objectives import masked_lm
from support.tiny import WORDS
from support.wordpieces import save_tokenizer


def write_data(folder: Path) -> Path:
    """Triples of texts."""
    generator = random.Random(6)
    save_tokenizer(folder)
    rows = []
    for _ in range(200):
        words, others = (generator.choices(WORDS, k=generator.randint(2, 8)) for _ in range(2))
        rows.append({"query": " ".join(words), "positive": " ".join(reversed(words)), "negative": " ".join(others)})
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT's body; the pooler, which no vector comes from, is frozen."""
    fields = masked_lm.recipe_fields(data)
    del fields["masking"]
    model = {"family": "bert", "config": masked_lm.MODEL, "dropout": 0.0, "freeze": ["pooler.*"]}
    return {
        **fields, "name": "tiny-vectors", "model": model, "objective": "embedding", "embedding": {"symmetric": True}
    }  # fmt: skip
