"""Narrow weights of a dry run, as a pretrained model comes: sharded safetensors with an index and a configuration."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import PreTrainedConfig

from shardyard.models.probes.narrow import randomise

# A released model of this size has some files as well.
FILES = 4


def write_narrow_weights(folder: Path, config: PreTrainedConfig, auto: str) -> Path:
    """Save a model with random weights in bf16 by transformers.

    Args:
        auto: the `Auto…` class that builds it.
    """
    transformers.utils.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, auto).from_config(config, dtype=torch.float32)
        randomise(model)
    model = model.to(torch.bfloat16)
    size = sum(parameter.nbytes for parameter in model.parameters())
    model.save_pretrained(folder, max_shard_size=max(1, size // FILES))
    return folder
