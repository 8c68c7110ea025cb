"""Puts weights and optimizer states that were read by parameter into an engine, at its own ZeRO stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint.constants import (
    OPTIMIZER_STATE_DICT,
    PARAM_SLICE_MAPPINGS,
    SINGLE_PARTITION_OF_FP32_GROUPS,
)
from torch import Tensor, nn

from shardyard.engine.checkpoint.elsewhere import LOSS_SCALER, States
from shardyard.engine.checkpoint.expert_weights import is_stacked
from shardyard.engine.mesh import Mesh
from shardyard.engine.offload.quirks import opened
from shardyard.optim.groups import parameter_groups


def trained_names(model: nn.Module, *, faster_b: bool) -> list[str]:
    """Names of the trained parameters in the order of the optimizer's groups."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 0.0, 1.0 if faster_b else None)
    return [names[id(parameter)] for group in groups for parameter in _parameters(group)]


def fill(engine: deepspeed.DeepSpeedEngine, stored: States, names: list[str], mesh: Mesh) -> None:
    """Set every weight, optimizer state, buffer and counter of the engine. All ranks call this.

    Args:
        stored: what this rank and those with which ZeRO shards it hold together, by the names of the engine.
        names: those of the trained parameters, in the order of the optimizer's groups.
    """
    stage = engine.zero_optimization_stage()
    if stage == 3:
        engine.optimizer.checkpoint_event_prologue()
    with torch.no_grad():
        _fill_model(engine.module, stored, mesh)
        if stage == 0:
            _fill_whole(engine.optimizer, stored, names)
        else:
            compiled = type(engine.optimizer.optimizer).__module__.startswith("deepspeed.ops")
            for slot in _slots(engine, stage, mesh):
                slot.fill(stored, compiled=compiled)
    if stage == 3:
        engine.optimizer.checkpoint_event_epilogue()
    scaler = getattr(engine.optimizer, LOSS_SCALER, None)
    if stored.loss_scaler is not None and scaler is not None:
        scaler.__dict__.update(stored.loss_scaler.__dict__)
    for name, value in stored.counters.items():
        setattr(engine, name, value)


def _apart(name: str, mesh: Mesh) -> int:
    """How far ranks that hold the same parameter are apart along `zero`: consecutive ranks have consecutive experts."""
    return mesh.expert.size if is_stacked(name) else 1


@dataclass(frozen=True)
class _Slot:
    """Where this rank keeps its values of a trained parameter, from the value `begin` on.

    master: the flat fp32 weights of a group. owner: the tensor of the group that the optimizer updates; states: what it
    keeps for it.
    """

    name: str
    begin: int
    master: Tensor
    owner: Tensor
    states: Any
    place: slice

    def fill(self, stored: States, *, compiled: bool) -> None:
        trained = stored.trained[self.name]
        end = self.begin + self.place.stop - self.place.start
        self.master[self.place].copy_(trained.weight.read(self.begin, end))
        for key, pieces in trained.states.items():
            # An optimizer makes its states in its first step.
            if key not in self.states:
                self.states[key] = torch.zeros_like(self.owner)
            self.states[key].flatten()[self.place].copy_(pieces.read(self.begin, end))
        for key, scalar in trained.scalars.items():
            # DeepSpeed's compiled optimizers count in Python, torch's in a tensor.
            self.states[key] = int(scalar) if compiled else torch.tensor(float(scalar))


def _slots(engine: deepspeed.DeepSpeedEngine, stage: int, mesh: Mesh) -> Iterator[_Slot]:
    inner = engine.optimizer.optimizer
    if stage < 3:
        # The tensors in it are the optimizer's own, not copies.
        state = engine.optimizer.state_dict()
        owners = [group["params"][0] for group in inner.param_groups]
        slices = state[PARAM_SLICE_MAPPINGS]
        before = _values_before(mesh, {name: one.numel for group in slices for name, one in group.items()})
        for owner, master, group in zip(owners, state[SINGLE_PARTITION_OF_FP32_GROUPS], slices, strict=True):
            for name, place in group.items():
                cut = slice(place.start, place.start + place.numel)
                yield _Slot(name, before.get(name, 0), master.flatten(), owner, inner.state[owner], cut)
        return
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    for number, group in enumerate(engine.optimizer.fp16_groups):
        with opened(engine, number) as master:
            start = 0
            for parameter in group:
                name, size = names[id(parameter)], parameter.ds_tensor.numel()
                begin, place = mesh.zero.index // _apart(name, mesh) * size, slice(start, start + size)
                yield _Slot(name, begin, master.flatten(), master, inner.state[master], place)
                start += size


def _values_before(mesh: Mesh, own: Mapping[str, int]) -> dict[str, int]:
    """Values of each parameter that ranks before this one keep."""
    found: dict[str, int] = {}
    for rank, share in enumerate(mesh.zero.gather(own)[: mesh.zero.index]):
        for name, count in share.items():
            if (mesh.zero.index - rank) % _apart(name, mesh) == 0:
                found[name] = found.get(name, 0) + count
    return found


def _fill_model(model: nn.Module, stored: States, mesh: Mesh) -> None:
    """Set the weights with which the model computes, and its buffers."""
    pieces = {**{name: trained.weight for name, trained in stored.trained.items()}, **stored.kept}
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if name not in pieces:
            continue
        if hasattr(tensor, "ds_tensor"):
            size, index = tensor.ds_tensor.numel(), mesh.zero.index // _apart(name, mesh)
            values = pieces[name].read(index * size, (index + 1) * size)
            tensor.ds_tensor.copy_(values.view(tensor.ds_tensor.shape))
        else:
            tensor.copy_(pieces[name].read(0, tensor.numel()).view(tensor.shape))


def _fill_whole(optimizer: Any, stored: States, names: list[str]) -> None:
    """ZeRO stage 0: every rank has all states; a run in 16 bits has fp32 weights of its own."""
    state = optimizer.state_dict()
    inner = state.get(OPTIMIZER_STATE_DICT, state)
    inner["state"] = {}
    for number, (name, shape) in enumerate(zip(names, _shapes(optimizer), strict=True)):
        trained = stored.trained[name]
        whole = {key: pieces.read(0, pieces.size).view(shape) for key, pieces in trained.states.items()}
        inner["state"][number] = {
            **whole,
            **{key: torch.tensor(float(scalar)) for key, scalar in trained.scalars.items()},
        }
    for number, master in enumerate(chain.from_iterable(state.get("fp32_groups") or ())):
        master.copy_(stored.trained[names[number]].weight.read(0, master.numel()).view(master.shape))
    optimizer.load_state_dict(state)


def _shapes(optimizer: Any) -> list[torch.Size]:
    groups: list[list[Tensor]] = getattr(optimizer, "fp32_groups", None) or [
        one["params"] for one in optimizer.param_groups
    ]
    return [parameter.shape for parameter in chain.from_iterable(groups)]


def _parameters(group: Any) -> list[nn.Parameter]:
    found: list[nn.Parameter] = group["params"]
    return found
