"""The weights in fp32, and the optimizer's states, of a checkpoint: whole parameters in files of safetensors.

What axes have split is joined, with the names of a model on one rank.

    model.safetensors         every weight by its name in training, trained ones in fp32, and buffers
    exp_avg.safetensors …     each state of the optimizer that has a value for every weight, by the same names
    state.json                step, counters, and states that are single numbers

A parameter is read, written and compared at a time, so memory is that of the largest one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from deepspeed.checkpoint.constants import FROZEN_PARAM_SHAPES, PARAM_SHAPES
from safetensors import safe_open
from torch import Tensor

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.convert.target import target
from shardyard.engine.checkpoint.elsewhere import States, read_states
from shardyard.engine.checkpoint.expert_weights import is_stacked, name_in_transformers
from shardyard.engine.checkpoint.parts import Values
from shardyard.engine.checkpoint.shards import opened
from shardyard.errors import CheckpointError
from shardyard.models.export.shards import ShardFile

MODEL = "model"


@dataclass(frozen=True)
class Whole:
    """A checkpoint by parameter. `shapes`: of every weight and buffer."""

    states: States
    shapes: Mapping[str, torch.Size]

    def tensors(self, kind: str) -> Mapping[str, Values]:
        """The weights and buffers (`model`), or a state of the optimizer, by name."""
        trained = self.states.trained
        if kind == MODEL:
            return {**{name: one.weight for name, one in trained.items()}, **self.states.kept}
        return {name: one.states[kind] for name, one in trained.items() if kind in one.states}

    @property
    def kinds(self) -> list[str]:
        """`model`, and the states of the optimizer."""
        return [MODEL, *sorted({key for one in self.states.trained.values() for key in one.states})]


def read_whole(folder: Path, in_order: Callable[[], list[str]], *, trust: bool = False) -> Whole:
    """A verified checkpoint by parameter.

    Args:
        in_order: names of trained parameters in the order of the optimizer's groups; called for ZeRO stage 0, whose
            files do not have them.

    Raises:
        CheckpointError: it is damaged.
    """
    manifest = files.read_manifest(folder)
    shards = opened(folder, trust=trust)
    damaged = shards.damaged(lambda place: True)
    if damaged:
        raise CheckpointError(f"{folder} is damaged: {', '.join(damaged)}; convert an older one with --step")
    stage = manifest["zero_stage"]
    states = read_states(shards, manifest, in_order() if stage == 0 else [])
    first = shards.read("mp_rank_00_model_states.pt") if stage < 3 else shards.by_rank("*_model_states.pt")[0]
    trained = {name: one.shape for name, one in states.trained.items()}
    found = _kept_shapes(first)
    names = [*found, *(name for group in first.get(PARAM_SHAPES) or () for name in group)]
    layers = {name.rpartition(".experts.")[0] for name in names if is_stacked(name)}
    rename = name_in_transformers(layers, names)
    shapes = {rename(name): shape for name, shape in found.items()} | trained
    # Tied weights are there once, and so is the router of AutoEP, which is also called as in transformers.
    tied = {rename(name) for name in first.get("shared_params") or ()}
    again = tuple(f"{layer}.gate.gate." for layer in layers)
    kept = {name: one for name, one in states.kept.items() if name not in tied and not name.startswith(again)}
    states = replace(states, kept=kept)
    lacking = [name for name in [*states.trained, *states.kept] if name not in shapes]
    if lacking:
        raise CheckpointError(f"{folder} has no shape of {', '.join(lacking[:3])}")
    return Whole(states, shapes)


def _kept_shapes(model: Any) -> dict[str, torch.Size]:
    """Of buffers and frozen weights."""
    frozen = (model.get(FROZEN_PARAM_SHAPES) or {}).items()
    found = {name: tensor.shape for name, tensor in model["module"].items()}
    return found | {name: torch.Size(shape) for name, shape in frozen}


def write_whole(whole: Whole, step: int, folder: Path, *, optimizer: bool) -> list[str]:
    """Write the files, compare them with the checkpoint, and return their names.

    Args:
        optimizer: the states of the optimizer too.

    Raises:
        UsageError: the folder exists.
        CheckpointError: what was written differs.
        OSError: it cannot be written.
    """
    kinds = whole.kinds if optimizer else [MODEL]
    with target(folder) as partial:
        for kind in kinds:
            path = partial / f"{kind}.safetensors"
            _write(path, whole, kind)
            _compare(path, whole, kind)
        scalars = {name: _plain(one.scalars) for name, one in whole.states.trained.items()} if optimizer else {}
        files.write_json(partial / "state.json", {"step": step, **whole.states.counters, "scalars": scalars})
        return sorted(path.name for path in partial.iterdir())


def _write(path: Path, whole: Whole, kind: str) -> None:
    pieces = whole.tensors(kind)
    like = {
        name: torch.empty(whole.shapes[name], dtype=_dtype(whole, kind, name), device="meta") for name in sorted(pieces)
    }
    file = ShardFile(path, like)
    try:
        for name, tensor in _each(whole, kind):
            file.write(name, tensor)
        file.close()
    finally:
        file.discard()


def _compare(path: Path, whole: Whole, kind: str) -> None:
    with safe_open(path, framework="pt") as written:
        names = set(written.keys())
        for name, tensor in _each(whole, kind):
            found = written.get_tensor(name) if name in names else None
            if found is None or found.dtype != tensor.dtype or not same_bits(found, tensor):
                raise CheckpointError(f"{name} in {path.name} differs from the checkpoint; check the disk")


def _each(whole: Whole, kind: str) -> Iterator[tuple[str, Tensor]]:
    for name, pieces in sorted(whole.tensors(kind).items()):
        yield name, pieces.read(0, pieces.size, _dtype(whole, kind, name)).view(whole.shapes[name])


def _dtype(whole: Whole, kind: str, name: str) -> torch.dtype:
    """fp32 of what is trained; buffers and frozen weights keep theirs."""
    if name in whole.states.trained:
        return torch.float32
    return whole.states.kept[name].read(0, 0).dtype


def same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors hold the same, values that are no numbers included."""
    if first.shape != second.shape:
        return False
    flat = [one.contiguous().reshape(-1).view(torch.uint8) for one in (first, second)]
    return torch.equal(*flat)


def _plain(scalars: Mapping[str, Tensor | int]) -> dict[str, float]:
    return {key: float(value) for key, value in scalars.items()}
