"""What a model of speech writes of recordings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from shardyard.data.formats import make_rows
from shardyard.data.formats.recordings import Transcribed
from shardyard.data.formats.target_text import as_bytes
from shardyard.engine.components import make_components
from shardyard.errors import UsageError
from shardyard.recipe.schema import Recipe


def transcripts(recipe: Recipe, model: Any, tokenizer: Any, files: Sequence[str], device: torch.device) -> list[str]:
    """The text of each recording, decoded as an evaluation decodes its rows.

    Raises:
        UsageError: a file is missing.
        UnusableRowError: a recording cannot be read, or is longer than the model or the recipe allows.
    """
    missing = next((file for file in files if not Path(file).is_file()), None)
    if missing is not None:
        raise UsageError(
            f"{recipe.objective} writes what it hears: give the file of a recording; there is none at {missing!r}."
        )
    made = make_components(recipe, tokenizer=tokenizer, config=model.config)
    whole = recipe.audio.model_copy(update={"too_long": "unusable"})
    inputs = replace(made.format_inputs, training=False, audio=whole)
    rows = cast(Transcribed, make_rows(recipe.objective, inputs))
    # What a recording sounds like in evaluation does not depend on random numbers; its text is not known.
    unused, unknown = np.random.default_rng(0), {"reference": as_bytes(" ")}
    found = []
    for file in files:
        samples = rows.samples({"audio": {"path": file}}, unused)
        batch = rows.collate([{**rows.heard(samples, unused), **unknown}])
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        ((text, *_),) = made.objective.collect(model, on_device, synchronised=False)
        found.append(str(text))
    return found
