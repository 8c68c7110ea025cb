"""What vLLM and a hub do not take of a saved adapter, as text for the person who exports it."""

from __future__ import annotations

import json
from pathlib import Path

from shardyard.models.adapters.saved import CONFIG, SavedConfig

# The values of vLLM's --max-lora-rank; the first is its default.
_RANKS = (16, 32, 64, 128, 256, 320, 512)


def left_out_by_vllm(folder: Path) -> list[str]:
    """What of the adapter in a folder vLLM refuses, or takes only with an option; empty if it loads as it is.

    Source: `PEFTHelper` in vllm/lora/peft_helper.py, and the options of its engine.
    """
    config = _read(folder)
    found = []
    if config.get("use_dora"):
        found.append("vLLM has no DoRA")
    modules = config.get("modules_to_save")
    if modules:
        found.append(f"vLLM loads no modules that are trained in full ({', '.join(modules)})")
    if config.get("target_parameters"):
        found.append("adapters of stacked experts need a version of vLLM that reads peft's target_parameters")
    if config["r"] > _RANKS[-1]:
        found.append(f"its rank {config['r']} is above vLLM's largest, {_RANKS[-1]}")
    elif config["r"] > _RANKS[0]:
        needed = next(rank for rank in _RANKS if rank >= config["r"])
        found.append(f"its rank {config['r']} needs `--max-lora-rank {needed}`")
    return found


def local_base(folder: Path) -> str | None:
    """The base model of an adapter if it is a folder of this machine, which nobody else has."""
    base = _read(folder).get("base_model_name_or_path")
    return base if base and Path(base).is_dir() else None


def _read(folder: Path) -> SavedConfig:
    found: SavedConfig = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return found
