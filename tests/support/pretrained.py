"""Tiny pretrained models as folders, created in tests with weights from a separate seed."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from shardyard.models.build import architecture_config, construct
from shardyard.models.initialise import initialise
from shardyard.recipe.schema import Model
from support.tiny import CONFIGS

BYTES_VOCABULARY = 257


def write_pretrained(
    folder: Path,
    family: str = "gpt2",
    *,
    objective: str = "causal_lm",
    vocabulary: int = BYTES_VOCABULARY,
    seed: int = 99,
    **config: Any,
) -> Path:
    """A folder for `from_pretrained`; weights differ clearly from the usual initialisation, so a mix-up is noticed."""
    model = Model(family=family, config={**CONFIGS.get(family, {}), **config})
    last = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), vocabulary - 1)
    built = construct(model, architecture_config(model, vocabulary=vocabulary, special_tokens=last), objective)
    initialise(built, seed=seed, gathered=lambda _: contextlib.nullcontext())
    for name, parameter in built.named_parameters():
        if parameter.dim() >= 2 and "norm" not in name:
            parameter.data.mul_(3)
    built.save_pretrained(folder)
    return folder
