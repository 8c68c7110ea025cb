"""reranker in small: the documents that contain the query are relevant."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.objectives import masked_lm
from support.tiny import WORDS
from support.wordpieces import save_tokenizer


def write_data(folder: Path) -> Path:
    """Queries with two to four documents, of which at least one is relevant."""
    generator = random.Random(7)
    save_tokenizer(folder)
    rows = []
    while len(rows) < 200:
        query = generator.choice(WORDS)
        documents = [generator.choices(WORDS, k=generator.randint(2, 6)) for _ in range(generator.randint(2, 4))]
        labels = [float(query in words) for words in documents]
        if any(labels):
            rows.append({"query": query, "documents": [" ".join(words) for words in documents], "labels": labels})
    path = folder / "ranked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT with one number for each pair."""
    fields = masked_lm.recipe_fields(data)
    del fields["masking"]
    model = {"family": "bert", "config": {**masked_lm.MODEL, "num_labels": 1}, "dropout": 0.0}
    ranking = {"loss": "listwise"}
    return {**fields, "name": "tiny-ranks", "model": model, "objective": "reranker", "ranking": ranking}
