"""Tokenising small sources in this process."""

from __future__ import annotations

import time
from pathlib import Path

from shardyard.data.tokenized import making
from shardyard.data.tokenized.layout import Manifest
from shardyard.recipe.schema import Data, Recipe
from shardyard.recipe.sources.token_sets import tokenized_root
from support.tiny import tiny_recipe


def recipe_of(data: Data, tokenizer: str = "bytes") -> Recipe:
    """A causal language model of this data."""
    return tiny_recipe(Path("unused")).model_copy(update={"data": data, "tokenizer": tokenizer})


def tokenize_sources(data: Data, root: Path | None = None, *, tokenizer: str = "bytes") -> list[Manifest]:
    """Tokenise the training sources of some data."""
    recipe = recipe_of(data, tokenizer)
    made = []
    for source in data.train:
        prepared = making.prepare_set(recipe, source, root or tokenized_root(), training=True)
        if isinstance(prepared, making.Prepared):
            started = time.monotonic()
            for task in prepared.tasks:
                making.run_task(prepared.work, task)
            made.append(making.finish_set(prepared, time.monotonic() - started))
        else:
            made.append(prepared.manifest)
    return made
