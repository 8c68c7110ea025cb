"""Consolidated weights of expert parallelism (DeepSpeed AutoEP), with the names of transformers.

AutoEP replaces each mixture of experts with its own layer: `experts.w1`, `w3` and `w2` [E/P, …] hold the gate, up and
down projections of a rank's experts, and `router.gate` the router. Consecutive ranks hold consecutive experts.

    E: experts of a layer, P: ranks that share them
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

import torch
from torch import Tensor, distributed, nn

from shardyard.engine.checkpoint.shards import Shards
from shardyard.engine.checkpoint.stored import Stored
from shardyard.engine.mesh import Axis
from shardyard.models.weight_source import Derived, on_meta, same
from shardyard.objectives.quirks import is_parallel_layer

PARTS = ("w1", "w2", "w3")
# AutoEP's names in a layer → transformers' names. Only Qwen2-MoE gates its shared expert, with names in the singular.
_NAMES = (("router.gate.", "gate."), ("router.", "gate."))
_QWEN2_NAMES = (("shared_experts_gate.", "shared_expert_gate."), ("shared_experts.", "shared_expert."))
_EXPERT_FILES = "layer_*_expert_*_mp_rank_00_model_states.pt"
_STACKED = re.compile(r"\.experts\.w[123]$")
_EXPERT_KEY = re.compile(r"^(?P<name>.+\.experts\.w[123])\.(?P<expert>\d+)$")


def is_stacked(name: str) -> bool:
    """Whether a weight has this name in AutoEP's layers: the experts of a rank, stacked."""
    return _STACKED.search(name) is not None


def parallel_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers whose experts are distributed over ranks, by name."""
    for name, module in model.named_modules():
        if is_parallel_layer(module):
            yield name, module


def gathered_experts(own: Tensor, axis: Axis, keeper: int) -> Tensor | None:
    """Experts of a layer [E, …] from the part of each rank [E/P, …]: on the CPU of `keeper`, None elsewhere. All ranks
    call this.

    Args:
        axis: the ranks that share the experts of a layer. Only those of the keeper send, because others hold copies.
        keeper: number of the rank in the world.
    """
    if keeper not in axis.ranks:
        return None
    is_keeper = axis.ranks[axis.index] == keeper
    if axis.size == 1:
        return own.to("cpu", copy=True)
    parts = [torch.empty_like(own) for _ in axis.ranks] if is_keeper else None
    distributed.gather(own.contiguous(), parts, dst=keeper, group=axis.group)
    return None if parts is None else torch.cat([part.cpu() for part in parts])


def experts_of_files(shards: Shards) -> dict[str, Stored]:
    """`….experts.w1` → [E, …] in a checkpoint of stage 1 or 2, in which each expert has a separate file."""
    by_name: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for file in shards.matching(_EXPERT_FILES):
        for key, tensor in shards.read(file).items():
            if match := _EXPERT_KEY.match(key):
                by_name[match["name"]][int(match["expert"])] = tensor
    ordered = {name: [of[expert] for expert in sorted(of)] for name, of in by_name.items()}
    return {
        name: Stored(torch.stack([on_meta(expert) for expert in experts]), partial(torch.stack, experts))
        for name, experts in ordered.items()
    }


def as_transformers(tensors: Mapping[str, Tensor], layers: Iterable[str]) -> dict[str, Derived]:
    """The weights of a model with AutoEP's layers, with the names and layout of transformers.

    Args:
        tensors: name → shape and precision (meta), experts whole.
        layers: names of AutoEP's layers (`model.layers.0.mlp`).
    """
    rest = dict(tensors)
    found: dict[str, Derived] = {}
    for layer in layers:
        own = {name: rest.pop(name) for name in tensors if name.startswith(f"{layer}.")}
        found |= _layer(layer, {name.removeprefix(f"{layer}."): tensor for name, tensor in own.items()})
    return {name: same(name, tensor) for name, tensor in rest.items()} | found


def name_in_transformers(layers: Collection[str], names: Iterable[str]) -> Callable[[str], str]:
    """What gives the name of a weight that transformers has for it, but for stacked experts (`is_stacked`).

    Args:
        layers: names of AutoEP's layers.
        names: those of all weights.
    """
    gated = {layer for layer in layers for name in names if name.startswith(f"{layer}.shared_experts_gate.")}

    def renamed(name: str) -> str:
        layer = next((one for one in layers if name.startswith(f"{one}.")), None)
        if layer is None:
            return name
        return f"{layer}.{_renamed(name.removeprefix(f'{layer}.'), _NAMES + (_QWEN2_NAMES if layer in gated else ()))}"

    return renamed


def _layer(layer: str, own: dict[str, Tensor]) -> dict[str, Derived]:
    gate, down, up = (own.pop(f"experts.{part}") for part in PARTS)
    gate_name, down_name, up_name = (f"{layer}.experts.{part}" for part in PARTS)
    found = {
        "experts.gate_up_proj": Derived(
            (gate_name, up_name),
            lambda weights: torch.cat([weights[gate_name], weights[up_name]], dim=1),
            torch.cat([gate, up], dim=1),
        ),
        "experts.down_proj": same(down_name, down),
    }
    names = _NAMES + (_QWEN2_NAMES if any(name.startswith("shared_experts_gate.") for name in own) else ())
    for name, tensor in own.items():
        # The router also has an alias with transformers' name.
        if not name.startswith("gate."):
            found[_renamed(name, names)] = same(f"{layer}.{name}", tensor)
    return {f"{layer}.{name}": derived for name, derived in found.items()}


def _renamed(name: str, names: Iterable[tuple[str, str]]) -> str:
    return next((new + name.removeprefix(old) for old, new in names if name.startswith(old)), name)
