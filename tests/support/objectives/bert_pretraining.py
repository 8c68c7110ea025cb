"""bert_pretraining in small: hidden words and sentence pairs of made-up documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.objectives import masked_lm

write_data = masked_lm.write_data


def recipe_fields(data: Path) -> dict[str, Any]:
    """BERT with both heads."""
    fields = masked_lm.recipe_fields(data)
    model = {"family": "bert", "config": masked_lm.MODEL, "dropout": 0.0}
    return {**fields, "name": "tiny-bert", "model": model, "objective": "bert_pretraining", "masking": {}}
