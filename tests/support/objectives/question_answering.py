"""question_answering in small: the word after the one that is asked for; some contexts are long, some lack it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from support.objectives import masked_lm
from support.tiny import WORDS
from support.wordpieces import save_tokenizer


def write_data(folder: Path) -> Path:
    """The columns of SQuAD 2.0."""
    generator = random.Random(5)
    save_tokenizer(folder)
    rows = []
    for _ in range(200):
        words = generator.choices(WORDS, k=generator.randint(3, 40))
        asked = generator.choice(WORDS)
        text, starts = [], []
        if asked in words[:-1]:
            at = words.index(asked) + 1
            text, starts = [words[at]], [len(" ".join(words[:at])) + 1]
        answers = {"text": text, "answer_start": starts}
        rows.append({"question": f"{asked}?", "context": " ".join(words), "answers": answers})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT with two scores for each token."""
    fields = masked_lm.recipe_fields(data)
    del fields["masking"]
    model = {"family": "bert", "config": masked_lm.MODEL, "dropout": 0.0}
    answering = {"unanswerable": True, "stride": 8}
    return {
        **fields, "name": "tiny-answers", "model": model, "objective": "question_answering", "answering": answering
    }  # fmt: skip
