"""Consolidated weights of expert parallelism (DeepSpeed AutoEP), with the names of transformers.

AutoEP replaces each mixture of experts with its own layer: `experts.w1`, `w3` and `w2` [E/P, …] hold the gate, up and
down projections of a rank's experts, and `router.gate` the router. Consecutive ranks hold consecutive experts.

    E: experts of a layer, P: ranks that share them
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import deepspeed
import torch
from torch import Tensor, distributed, nn

from shardyard.engine.checkpoint.tensor_files import read_tensors
from shardyard.engine.mesh import Axis
from shardyard.objectives.quirks import is_parallel_layer

_PARTS = ("w1", "w2", "w3")
# AutoEP's names in a layer → transformers' names. Only Qwen2-MoE gates its shared expert, with names in the singular.
_NAMES = (("router.gate.", "gate."), ("router.", "gate."))
_QWEN2_NAMES = (("shared_experts_gate.", "shared_expert_gate."), ("shared_experts.", "shared_expert."))
_EXPERT_FILES = "layer_*_expert_*_mp_rank_00_model_states.pt"
_EXPERT_KEY = re.compile(r"^(?P<name>.+\.experts\.w[123])\.(?P<expert>\d+)$")


def parallel_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose experts are distributed over ranks, by name."""
    for name, module in model.named_modules():
        if is_parallel_layer(module):
            yield name, module


def consolidated_experts(model: nn.Module, axis: Axis) -> dict[str, Tensor]:
    """`….experts.w1` → [E, …] on the CPU of rank 0, nothing elsewhere. All ranks call this.

    Args:
        axis: the ranks that share the experts of a layer.
    """
    found: dict[str, Tensor] = {}
    for name, layer in parallel_layers(model):
        experts: nn.Module = layer.get_submodule("experts")
        with deepspeed.zero.GatheredParameters(list(experts.parameters())):
            for part in _PARTS:
                gathered = _gathered(getattr(experts, part).detach(), axis)
                if gathered is not None:
                    found[f"{name}.experts.{part}"] = gathered
    return found


def _gathered(own: Tensor, axis: Axis) -> Tensor | None:
    """Gather experts on rank 0. Only its group sends, because the others hold the same experts."""
    if axis.ranks[0] != 0:
        return None
    parts = [torch.empty_like(own) for _ in axis.ranks] if axis.index == 0 else None
    distributed.gather(own.contiguous(), parts, dst=0, group=axis.group)
    return None if parts is None else torch.cat([part.cpu() for part in parts])


def read_experts(engine_folder: Path, *, trust: bool = False) -> dict[str, Tensor]:
    """`….experts.w1` → [E, …] from a checkpoint of stage 1 or 2, in which each expert has a separate file."""
    by_name: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for path in engine_folder.glob(_EXPERT_FILES):
        for key, tensor in read_tensors(path, trust=trust).items():
            if match := _EXPERT_KEY.match(key):
                by_name[match["name"]][int(match["expert"])] = tensor
    return {name: torch.stack([of[expert] for expert in sorted(of)]) for name, of in by_name.items()}


def as_transformers(weights: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, Tensor]:
    """The weights of a model with AutoEP's layers, with the names and layout of transformers.

    Args:
        weights: name → tensor, experts whole.
        layers: names of AutoEP's layers (`model.layers.0.mlp`).
    """
    converted = dict(weights)
    for layer in layers:
        own = {name: converted.pop(name) for name in weights if name.startswith(f"{layer}.")}
        converted |= _layer(layer, {name.removeprefix(f"{layer}."): tensor for name, tensor in own.items()})
    return converted


def _layer(layer: str, own: dict[str, Tensor]) -> dict[str, Tensor]:
    gate, down, up = (own.pop(f"experts.{part}") for part in _PARTS)
    found = {"experts.gate_up_proj": torch.cat([gate, up], dim=1), "experts.down_proj": down}
    names = _NAMES + (_QWEN2_NAMES if any(name.startswith("shared_experts_gate.") for name in own) else ())
    for name, tensor in own.items():
        # The router also has an alias with transformers' name.
        if not name.startswith("gate."):
            found[_renamed(name, names)] = tensor
    return {f"{layer}.{name}": tensor for name, tensor in found.items()}


def _renamed(name: str, names: Iterable[tuple[str, str]]) -> str:
    return next((new + name.removeprefix(old) for old, new in names if name.startswith(old)), name)
