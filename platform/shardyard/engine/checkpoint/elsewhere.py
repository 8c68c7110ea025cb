"""The trained weights and optimizer states in a checkpoint, by parameter, whatever its ZeRO stage and number of ranks.

Files are mapped into memory, and a rank reads of each parameter only the values that it keeps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Any

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

from shardyard.engine.checkpoint.pieces import Pieces, spans
from shardyard.engine.checkpoint.shards import Shards
from shardyard.errors import CheckpointError

MODEL_STATES = "mp_rank_00_model_states.pt"
LOSS_SCALER = "loss_scaler"


@dataclass(frozen=True)
class Trained:
    """A trained parameter: its fp32 weight, its optimizer states of the same size, and others such as a step."""

    weight: Pieces
    states: Mapping[str, Pieces] = field(default_factory=dict)
    scalars: Mapping[str, Tensor | int] = field(default_factory=dict)


@dataclass(frozen=True)
class States:
    """A whole checkpoint. `kept`: frozen parameters and buffers; `counters`: steps, samples and skipped steps."""

    trained: Mapping[str, Trained]
    kept: Mapping[str, Pieces]
    counters: Mapping[str, int]
    loss_scaler: Any = None


def read_states(shards: Shards, stage: int, trained: Sequence[str]) -> States:
    """What the files of DeepSpeed in a checkpoint hold.

    Args:
        shards: the checkpoint; only what is used of it is read from the disk.
        stage: the ZeRO stage at which they were written.
        trained: names of trained parameters in the order of the optimizer's groups.

    Raises:
        CheckpointError: files or parameters are missing.
    """
    if stage == 3:
        models = shards.by_rank("*_model_states.pt")
        first = models[0]
        states = [one[OPTIMIZER_STATE_DICT] for one in shards.by_rank("*_optim_states.pt")]
        found = _of_stage_3(first, states)
        kept = {name: Pieces([first["module"][name]]) for name in first[BUFFER_NAMES]}
        for name in first[FROZEN_PARAM_FRAGMENTS] or ():
            kept[name] = Pieces([one[FROZEN_PARAM_FRAGMENTS][name] for one in models])
        scaler = states[0].get(LOSS_SCALER)
    else:
        first = shards.read(MODEL_STATES)
        kept = {name: Pieces([tensor]) for name, tensor in first["module"].items()}
        states = [one[OPTIMIZER_STATE_DICT] for one in shards.by_rank("*_optim_states.pt")] if stage else []
        found = _of_partitions(states) if stage else _of_stage_0(first, trained)
        scaler = states[0].get(LOSS_SCALER) if stage else None
    missing = [name for name in trained if name not in found]
    if missing:
        raise CheckpointError(
            f"{shards.folder} has no optimizer states of {', '.join(missing[:3])}; copy the checkpoint again"
        )
    counters = {name: int(first[name]) for name in ("global_steps", "global_samples", "skipped_steps")}
    return States(found, {name: one for name, one in kept.items() if name not in found}, counters, scaler)


def _of_stage_0(model: Any, trained: Sequence[str]) -> dict[str, Trained]:
    """Every rank had all of it; a run in 16 bits has fp32 weights of its own."""
    optimizer = model["optimizer"]
    masters = list(chain.from_iterable(optimizer.get("fp32_groups") or ()))
    states = optimizer.get(OPTIMIZER_STATE_DICT, optimizer)["state"]
    found = {}
    for index, name in enumerate(trained):
        weight = masters[index] if masters else model["module"][name]
        whole, scalars = _parted(states.get(index, {}), partial(_is_like, weight))
        found[name] = Trained(Pieces([weight]), {key: Pieces([one]) for key, one in whole.items()}, scalars)
    return found


def _of_partitions(states: Sequence[Any]) -> dict[str, Trained]:
    """Stages 1 and 2: the ranks share the flat tensor of a group, and a slice has the name of its parameter."""
    parts: dict[str, list[tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor | int]]]] = {}
    for one in states:
        groups = zip(one[SINGLE_PARTITION_OF_FP32_GROUPS], one[PARAM_SLICE_MAPPINGS], strict=True)
        for number, (master, slices) in enumerate(groups):
            whole, scalars = _parted(one[BASE_OPTIMIZER_STATE]["state"].get(number, {}))
            for name, place in slices.items():
                cut = slice(place.start, place.start + place.numel)
                share = {key: tensor.flatten()[cut] for key, tensor in whole.items()}
                parts.setdefault(name, []).append((master.flatten()[cut], share, scalars))
    return {name: _joined(shares) for name, shares in parts.items()}


def _of_stage_3(model: Any, states: Sequence[Any]) -> dict[str, Trained]:
    """Each rank has an equal share of every parameter, in flat tensors in the order of the parameters."""
    found: dict[str, Trained] = {}
    begin = 0
    for name, shape in chain.from_iterable(group.items() for group in model[PARAM_SHAPES]):
        size = shape.numel()
        share = -(-size // len(states))
        places = [(one, at, cut) for one in states for at, cut in spans(one[FP32_FLAT_GROUPS], begin, share)]
        inner = [(one[OPTIMIZER_STATE_DICT]["state"].get(at, {}), cut) for one, at, cut in places]
        whole, scalars = _parted(inner[0][0] if inner else {})
        weight = Pieces([one[FP32_FLAT_GROUPS][at][cut] for one, at, cut in places], size)
        moments = {key: Pieces([state[key][cut] for state, cut in inner], size) for key in whole}
        found[name] = Trained(weight, moments, scalars)
        begin += share
    return found


def _joined(shares: Iterable[tuple[Tensor, Mapping[str, Tensor], Mapping[str, Tensor | int]]]) -> Trained:
    masters, states, scalars = zip(*shares, strict=True)
    moments = {key: Pieces([one[key] for one in states]) for key in states[0]}
    return Trained(Pieces(masters), moments, scalars[0])


def _is_like(weight: Tensor, key: str, state: Tensor) -> bool:
    return key != "step" and state.shape == weight.shape


def _parted(
    state: Any, whole: Callable[[str, Tensor], bool] = lambda _, tensor: tensor.dim() > 0
) -> tuple[dict[str, Tensor], dict[str, Tensor | int]]:
    """The states of an optimizer that have a value for each weight, which flat ones have, and single numbers."""
    values = {key: value for key, value in state.items() if isinstance(value, Tensor | int)}
    found = {key: value for key, value in values.items() if isinstance(value, Tensor) and whole(key, value)}
    return found, {key: value for key, value in values.items() if key not in found}
