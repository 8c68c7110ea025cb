"""The trained weights and optimizer states in a checkpoint, by parameter, whatever its ZeRO stage, ranks and axes.

They are whole and have the names of a model on one rank; `of_ranks.py` cuts them for other ranks. Files are mapped into
memory, and a rank reads of each parameter only the values that it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

import torch
from deepspeed.checkpoint.constants import (
    BASE_OPTIMIZER_STATE,
    BUFFER_NAMES,
    FP32_FLAT_GROUPS,
    FROZEN_PARAM_FRAGMENTS,
    OPTIMIZER_STATE_DICT,
    PARAM_SHAPES,
    PARAM_SLICE_MAPPINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from torch import Tensor

from shardyard.engine.checkpoint.expert_weights import PARTS, is_stacked, name_in_transformers
from shardyard.engine.checkpoint.files import Manifest
from shardyard.engine.checkpoint.parts import Values, joined
from shardyard.engine.checkpoint.pieces import Pieces, spans
from shardyard.engine.checkpoint.shards import Shards
from shardyard.errors import CheckpointError
from shardyard.recipe.tensor_plans import split_dimension

LOSS_SCALER = "loss_scaler"
_Shapes = Mapping[str, torch.Size]
# The weights in a file → names of the trained ones in the order of the optimizer's groups.
_Order = Callable[[Mapping[str, Tensor]], Sequence[str]]


@dataclass(frozen=True)
class Trained:
    """A trained parameter: its fp32 weight, its optimizer states of the same shape, and others such as a step."""

    shape: torch.Size
    weight: Values
    states: Mapping[str, Values] = field(default_factory=dict)
    scalars: Mapping[str, Tensor | int] = field(default_factory=dict)

    def changed(self, shape: Sequence[int], change: Callable[[Values], Values]) -> Trained:
        """The same with other values, of another shape."""
        states = {key: change(values) for key, values in self.states.items()}
        return Trained(torch.Size(shape), change(self.weight), states, self.scalars)


@dataclass(frozen=True)
class States:
    """A whole checkpoint. `kept`: frozen parameters and buffers; `counters`: steps, samples and skipped steps."""

    trained: Mapping[str, Trained]
    kept: Mapping[str, Values]
    counters: Mapping[str, int]
    loss_scaler: Any = None


def read_states(shards: Shards, manifest: Manifest, trained: Sequence[str], *, in_order: bool = True) -> States:
    """What the files of DeepSpeed in a checkpoint hold, by the names of a model on one rank.

    Args:
        shards: the checkpoint; only what is used of it is read from the disk.
        manifest: the stage and the sizes of the axes with which it was written.
        trained: names of trained parameters.
        in_order: they are in the order of the optimizer's groups. Otherwise matrices come first, then the rest, both
            as in the model that was saved.

    Raises:
        CheckpointError: files or parameters are missing.
    """
    split, spread = manifest.get("tensor_parallel", 1), manifest.get("expert_parallel", 1)
    order: _Order = (lambda module: trained) if in_order else partial(_as_saved, trained)
    parts = [_read_part(shards, manifest["zero_stage"], spread, rank, order) for rank in range(split)]
    first = parts[0]
    found = {name: _of_parts(name, [part.trained[name] for part in parts]) for name in first.trained}
    kept = first.kept
    if spread > 1:
        layers = sorted({name.rpartition(".experts.")[0] for name in found if is_stacked(name)})
        rename = name_in_transformers(layers, {*found, *kept})
        found = {rename(name): one for name, one in _with_experts(found, layers).items()}
        kept = {rename(name): one for name, one in kept.items()}
    missing = [name for name in trained if name not in found]
    if missing:
        raise CheckpointError(
            f"{shards.folder} has no optimizer states of {', '.join(missing[:3])}; copy the checkpoint again"
        )
    rest = {name: one for name, one in kept.items() if name not in found}
    return States(found, rest, first.counters, first.loss_scaler)


def _read_part(shards: Shards, stage: int, spread: int, tensor: int, order: _Order) -> States:
    """What the ranks with one index along `tensor` hold: of split layers their part."""
    optimizers = f"*zero_pp_rank_*_mp_rank_{tensor:02d}_optim_states.pt"
    if stage == 3:
        models = shards.by_rank(f"*zero_pp_rank_*_mp_rank_{tensor:02d}_model_states.pt")
        first = models[0]
        states = [one[OPTIMIZER_STATE_DICT] for one in shards.by_rank(optimizers)]
        found = _of_stage_3(_shapes(first), states, spread)
        kept = {name: Pieces([first["module"][name]]) for name in first[BUFFER_NAMES]}
        for name in first[FROZEN_PARAM_FRAGMENTS] or ():
            kept[name] = Pieces([one[FROZEN_PARAM_FRAGMENTS][name] for one in models])
        scaler = states[0].get(LOSS_SCALER)
    else:
        first = shards.read(f"mp_rank_{tensor:02d}_model_states.pt")
        kept = {name: Pieces([value]) for name, value in first["module"].items()}
        states = [one[OPTIMIZER_STATE_DICT] for one in shards.by_rank(optimizers)] if stage else []
        found = _of_partitions(_shapes(first), states, spread) if stage else _of_stage_0(first, order(first["module"]))
        scaler = states[0].get(LOSS_SCALER) if stage else None
    counters = {name: int(first[name]) for name in ("global_steps", "global_samples", "skipped_steps")}
    return States(found, kept, counters, scaler)


def _as_saved(trained: Sequence[str], module: Mapping[str, Tensor]) -> list[str]:
    """The order of `optim/groups.py` in a model without adapters."""
    names = set(trained)
    return sorted((name for name in module if name in names), key=lambda name: module[name].dim() < 2)


def _shapes(model: Any) -> _Shapes:
    """In the order of the optimizer's groups. Those of AutoEP are plain tuples."""
    groups: Sequence[Mapping[str, Sequence[int]]] = model[PARAM_SHAPES]
    return {name: torch.Size(shape) for group in groups for name, shape in group.items()}


def _of_stage_0(model: Any, trained: Sequence[str]) -> dict[str, Trained]:
    """Every rank had all of it; a run in 16 bits has fp32 weights of its own."""
    optimizer = model["optimizer"]
    masters = list(chain.from_iterable(optimizer.get("fp32_groups") or ()))
    states = optimizer.get(OPTIMIZER_STATE_DICT, optimizer)["state"]
    found = {}
    for index, name in enumerate(trained):
        weight = masters[index] if masters else model["module"][name]
        whole, scalars = _parted(states.get(index, {}), partial(_is_like, weight))
        pieces = {key: Pieces([one]) for key, one in whole.items()}
        found[name] = Trained(weight.shape, Pieces([weight]), pieces, scalars)
    return found


_Share = tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor | int]]


def _of_partitions(shapes: _Shapes, states: Sequence[Any], spread: int) -> dict[str, Trained]:
    """Stages 1 and 2: the ranks share the flat tensor of a group, and a slice has the name of its parameter."""
    # Name → of the ranks with the same experts, or of all ranks, what each holds.
    parts: dict[str, dict[int, list[_Share]]] = {}
    for rank, one in enumerate(states):
        groups = zip(one[SINGLE_PARTITION_OF_FP32_GROUPS], one[PARAM_SLICE_MAPPINGS], strict=True)
        for number, (master, slices) in enumerate(groups):
            whole, scalars = _parted(one[BASE_OPTIMIZER_STATE]["state"].get(number, {}))
            for name, place in slices.items():
                cut = slice(place.start, place.start + place.numel)
                share = {key: tensor.flatten()[cut] for key, tensor in whole.items()}
                held = parts.setdefault(name, {}).setdefault(rank % spread if is_stacked(name) else 0, [])
                held.append((master.flatten()[cut], share, scalars))
    return {
        name: _of_experts([_joined(shapes[name], held[index]) for index in sorted(held)])
        for name, held in parts.items()
    }


def _of_stage_3(shapes: _Shapes, states: Sequence[Any], spread: int) -> dict[str, Trained]:
    """Each rank has an equal share of every parameter, in flat tensors in the order of the parameters.

    Ranks with other experts of a layer share other parameters: every `spread`-th rank has the same ones.
    """
    found: dict[str, Trained] = {}
    begin = 0
    for name, shape in shapes.items():
        groups = spread if is_stacked(name) else 1
        share = -(-shape.numel() // (len(states) // groups))
        parts = [_of_shares(states[first::groups], shape, begin, share) for first in range(groups)]
        found[name] = _of_experts(parts)
        begin += share
    return found


def _of_shares(states: Sequence[Any], shape: torch.Size, begin: int, share: int) -> Trained:
    size = shape.numel()
    places = [(one, at, cut) for one in states for at, cut in spans(one[FP32_FLAT_GROUPS], begin, share)]
    inner = [(one[OPTIMIZER_STATE_DICT]["state"].get(at, {}), cut) for one, at, cut in places]
    whole, scalars = _parted(inner[0][0] if inner else {})
    weight = Pieces([one[FP32_FLAT_GROUPS][at][cut] for one, at, cut in places], size)
    moments = {key: Pieces([state[key][cut] for state, cut in inner], size) for key in whole}
    return Trained(shape, weight, moments, scalars)


def _joined(shape: torch.Size, shares: Iterable[_Share]) -> Trained:
    masters, states, scalars = zip(*shares, strict=True)
    moments = {key: Pieces([one[key] for one in states]) for key in states[0]}
    return Trained(shape, Pieces(masters), moments, scalars[0])


def _of_experts(parts: Sequence[Trained]) -> Trained:
    """The experts of a layer from those of each rank; another parameter is its only part."""
    return _along(parts, 0)


def _of_parts(name: str, parts: Sequence[Trained]) -> Trained:
    """A parameter of which each tensor-parallel rank has its part, or all of it."""
    dim = split_dimension(name)
    return parts[0] if dim is None else _along(parts, dim)


def _along(parts: Sequence[Trained], dim: int) -> Trained:
    first = parts[0]
    if len(parts) == 1:
        return first
    shape = list(first.shape)
    shape[dim] *= len(parts)
    states = {key: joined([part.states[key] for part in parts], first.shape, dim) for key in first.states}
    weight = joined([part.weight for part in parts], first.shape, dim)
    return Trained(torch.Size(shape), weight, states, first.scalars)


def _with_experts(found: Mapping[str, Trained], layers: Sequence[str]) -> dict[str, Trained]:
    """With the experts of layers as transformers stacks them, gate and up projections in one tensor."""
    rest = dict(found)
    for layer in layers:
        gate, down, up = (rest.pop(f"{layer}.experts.{part}") for part in PARTS)
        rest |= {f"{layer}.experts.gate_up_proj": _along([gate, up], 1), f"{layer}.experts.down_proj": down}
    return rest


def _is_like(weight: Tensor, key: str, state: Tensor) -> bool:
    return key != "step" and state.shape == weight.shape


def _parted(
    state: Any, whole: Callable[[str, Tensor], bool] = lambda _, tensor: tensor.dim() > 0
) -> tuple[dict[str, Tensor], dict[str, Tensor | int]]:
    """The states of an optimizer that have a value for each weight, which flat ones have, and single numbers.

    Raises:
        CheckpointError: the states are in 8 bits, of blocks that another split of the weights does not have.
    """
    if any(isinstance(value, Mapping) for value in state.values()):
        raise CheckpointError(
            "the optimizer states of this checkpoint are in 8 bits, with a scale for each block of a rank's share of "
            "the weights; resume with the number of workers and the zero.stage that wrote it, or start a new run from "
            "its weights (model.pretrained: run:NAME)"
        )
    values = {key: value for key, value in state.items() if isinstance(value, Tensor | int)}
    found = {key: value for key, value in values.items() if isinstance(value, Tensor) and whole(key, value)}
    return found, {key: value for key, value in values.items() if key not in found}
