"""Consolidated weights of a running engine or of a checkpoint on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import deepspeed
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor, nn

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.checkpoint import ENGINE_TAG
from shardyard.engine.checkpoint.expert_weights import (
    as_transformers,
    consolidated_experts,
    parallel_layers,
    read_experts,
)
from shardyard.engine.checkpoint.tensor_files import only_tensors, read_tensors
from shardyard.engine.deepspeed.quirks import consolidated
from shardyard.engine.mesh import Mesh
from shardyard.errors import CheckpointError
from shardyard.tracking.run.folder import typed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def consolidated_weights(engine: deepspeed.DeepSpeedEngine, mesh: Mesh) -> Mapping[str, Tensor] | None:
    """Every weight by name on rank 0, None elsewhere; in the precision of the forward pass. All ranks call this."""
    layers = [name for name, _ in parallel_layers(engine.module)]
    if engine.zero_optimization_stage() == 3:
        weights = _gathered(engine.module, mesh) if layers else consolidated(engine)
    else:
        weights = {name: tensor.detach().cpu() for name, tensor in engine.module.state_dict().items()}
    experts = consolidated_experts(engine.module, mesh.expert)
    if not mesh.is_first:
        return None
    return as_transformers({**weights, **experts}, layers)


def _gathered(model: nn.Module, mesh: Mesh) -> dict[str, Tensor]:
    """The weights under ZeRO-3 on rank 0, gathered one module at a time; of experts, only rank 0's own."""
    found: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        with deepspeed.zero.GatheredParameters(parameters):
            if mesh.is_first:
                own = module.state_dict(prefix=f"{prefix}." if prefix else "")
                direct = {name for name, _ in module.named_parameters(prefix=prefix, recurse=False)}
                direct |= {name for name, _ in module.named_buffers(prefix=prefix, recurse=False)} & own.keys()
                found |= {name: own[name].detach().cpu().clone() for name in direct}
    return found


def weights_of_checkpoint(folder: Path, *, precision: str, trust: bool = False) -> Mapping[str, Tensor]:
    """Every weight of a checkpoint, without an engine and on one machine; the checkpoint is verified before reading.

    Args:
        trust: load checkpoint files that may execute code.

    Raises:
        CheckpointError: the checkpoint is damaged, holds more than tensors, or uses ZeRO-3 with expert parallelism.
    """
    manifest = files.read_manifest(folder)
    damaged = files.damaged_files(folder, manifest)
    if damaged:
        raise CheckpointError(f"{folder} is damaged: {', '.join(damaged)}; use an older checkpoint")
    parallel = manifest.get("expert_parallel", 1)
    if manifest["zero_stage"] == 3 and parallel > 1:
        raise CheckpointError(
            f"{folder} holds experts that are spread over {parallel} ranks in the shards of ZeRO-3, which only those "
            f"ranks can consolidate; `shardyard resume {typed(folder.parents[1])}` continues the run, which writes "
            "final/ at its end"
        )
    if manifest["zero_stage"] == 3:
        with only_tensors(trust=trust):
            weights: dict[str, torch.Tensor] = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=ENGINE_TAG)
        return {name: tensor.to(DTYPES[precision]) for name, tensor in weights.items()}
    states = read_tensors(folder / ENGINE_TAG / "mp_rank_00_model_states.pt", trust=trust)
    experts = read_experts(folder / ENGINE_TAG, trust=trust) if parallel > 1 else {}
    layers = sorted({name.rpartition(".experts.")[0] for name in experts})
    return as_transformers({**states["module"], **experts}, layers)
