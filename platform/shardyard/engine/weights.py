"""Whole weights, from a running engine or from a checkpoint on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor

from shardyard.engine import checkpoint_files as files
from shardyard.engine.checkpoint import ENGINE_TAG
from shardyard.errors import CheckpointError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def whole_weights(engine: deepspeed.DeepSpeedEngine) -> Mapping[str, Tensor] | None:
    """Every weight by name on rank 0, None elsewhere; in the precision of the forward pass. All ranks call this."""
    if engine.zero_optimization_stage() == 3:
        return engine._zero3_consolidated_16bit_state_dict()  # type: ignore[no-any-return]
    if torch.distributed.get_rank() != 0:
        return None
    return {name: tensor.detach().cpu() for name, tensor in engine.module.state_dict().items()}


def weights_of_checkpoint(folder: Path, *, precision: str) -> Mapping[str, Tensor]:
    """Every weight of a checkpoint, without an engine and on one machine; verified before anything is unpickled.

    Raises:
        CheckpointError: the checkpoint is damaged.
    """
    manifest = files.read_manifest(folder)
    damaged = files.damaged_files(folder, manifest)
    if damaged:
        raise CheckpointError(f"{folder} is damaged: {', '.join(damaged)}; use an older checkpoint")
    if manifest["zero_stage"] == 3:
        weights: dict[str, Any] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=ENGINE_TAG)
        return {name: tensor.to(DTYPES[precision]) for name, tensor in weights.items()}
    states = torch.load(folder / ENGINE_TAG / "mp_rank_00_model_states.pt", map_location="cpu", weights_only=False)
    return states["module"]  # type: ignore[no-any-return]
