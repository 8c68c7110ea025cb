"""Weights of a running engine or of a checkpoint on disk, whole, read one after the other when they are needed."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.checkpoint.constants import FP32_FLAT_GROUPS, OPTIMIZER_STATE_DICT
from torch import Tensor, nn

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.expert_weights import (
    PARTS,
    as_transformers,
    experts_of_files,
    gathered_experts,
    is_stacked,
    parallel_layers,
)
from shardyard.engine.checkpoint.gathering import can_be_sent, can_be_sent_in_parts, sent, sent_in_parts
from shardyard.engine.checkpoint.partitions import partitioned_weights
from shardyard.engine.checkpoint.shards import opened
from shardyard.engine.checkpoint.stored import Stored, in_file
from shardyard.engine.deepspeed.quirks import release_parameters
from shardyard.engine.mesh import Mesh
from shardyard.engine.parallel.tensor import joined
from shardyard.errors import CheckpointError
from shardyard.models.weight_source import Derived, DerivedWeights, WeightSource
from shardyard.recipe.tensor_plans import split_dimension

OPTIMIZER = "optimizer"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_GATHERED_BYTES = 8 << 20


class EngineWeights:
    """The weights of a running engine by its own names, in the precision of the forward pass."""

    def __init__(self, engine: deepspeed.DeepSpeedEngine, mesh: Mesh) -> None:
        model: nn.Module = engine.module
        named = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
        # Buffers that are not saved are not in the state.
        self._held = {name: named[name] for name in model.state_dict() if name in named}
        self._mesh = mesh
        spread = [name for name, _ in parallel_layers(model)]
        self._experts = {f"{layer}.experts.{part}" for layer in spread for part in PARTS}
        self._split = {name for name in self._held if mesh.tensor.size > 1 and split_dimension(name) is not None}
        several = bool(self._split) or (mesh.expert.size > 1 and bool(spread))
        self.collective = engine.zero_optimization_stage() == 3 or several
        self.tensors: Mapping[str, Tensor] = {name: self._like(name) for name in self._held}

    def read(self, names: Sequence[str], keepers: Collection[int]) -> Mapping[str, Tensor]:
        """These weights on the ranks that keep them."""
        if not self.collective:
            return {name: self._held[name].detach() for name in names}
        found: dict[str, Tensor] = {}
        rest = []
        for name in names:
            if name in self._split or name in self._experts or not can_be_sent(self._held[name]):
                rest.append(name)
            elif (tensor := sent(self._held[name], keepers, self._mesh.rank)) is not None:
                found[name] = tensor
        for batch in self._batches(rest):
            with whole([self._held[name] for name in batch]):
                found |= self._kept(batch, keepers)
        return found

    def goes_in_parts(self, name: str) -> bool:
        """Whether `parts` can read this weight."""
        plain = self.collective and name not in self._split and name not in self._experts
        return plain and can_be_sent_in_parts(self._held[name])

    def parts(self, name: str, keepers: Collection[int]) -> Iterator[tuple[int, Tensor | None]]:
        """The flat weight piece by piece, on the ranks that keep it."""
        return sent_in_parts(self._held[name], keepers, self._mesh.rank)

    def _kept(self, names: Sequence[str], keepers: Collection[int]) -> dict[str, Tensor]:
        """Copies on the CPU, because gathered memory is freed afterwards."""
        own = self._mesh.rank in keepers
        found: dict[str, Tensor] = {}
        for name in names:
            if name in self._experts:
                for keeper in sorted(keepers):
                    experts = gathered_experts(self._held[name].detach(), self._mesh.expert, keeper)
                    found |= {} if experts is None else {name: experts}
            elif name in self._split:
                joint = joined(name, self._held[name].detach(), self._mesh.tensor)
                found |= {name: joint.cpu()} if own else {}
            elif own:
                found[name] = self._held[name].detach().to("cpu", copy=True)
        return found

    def _batches(self, names: Sequence[str]) -> Iterator[list[str]]:
        """Weights that are gathered at once: a large one alone, because DeepSpeed holds them twice meanwhile."""
        batch: list[str] = []
        for name in names:
            batch.append(name)
            if sum(self.tensors[one].nbytes for one in batch) >= _GATHERED_BYTES:
                yield batch
                batch = []
        if batch:
            yield batch

    def _like(self, name: str) -> Tensor:
        held = self._held[name]
        shape = torch.Size(getattr(held, "ds_shape", held.shape))
        if name in self._experts:
            shape = torch.Size((shape[0] * self._mesh.expert.size, *shape[1:]))
        if name in self._split:
            dim, sizes = split_dimension(name) or 0, list(shape)
            sizes[dim] *= self._mesh.tensor.size
            shape = torch.Size(sizes)
        return torch.empty(shape, dtype=held.dtype, device="meta")


@contextlib.contextmanager
def whole(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Context in which parameters that ZeRO-3 has partitioned are whole on every rank. All ranks call this."""
    by_group: dict[int, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        if hasattr(tensor, "ds_id"):
            by_group[id(getattr(tensor, "ds_process_group", None))].append(tensor)
    with contextlib.ExitStack() as stack:
        # Experts are partitioned over other ranks than the rest; DeepSpeed gathers each group for itself.
        for group in by_group.values():
            stack.enter_context(deepspeed.zero.GatheredParameters(group))
        yield


def live_weights(engine: deepspeed.DeepSpeedEngine, mesh: Mesh) -> WeightSource:
    """The weights of a running engine by the names of transformers; all ranks call this."""
    release_parameters(engine)
    own = EngineWeights(engine, mesh)
    layers = [name for name, _ in parallel_layers(engine.module)]
    return DerivedWeights(own, as_transformers(own.tensors, layers)) if layers else own


def consolidated_weights(engine: deepspeed.DeepSpeedEngine, mesh: Mesh) -> Mapping[str, Tensor] | None:
    """Every weight by name at once on rank 0, None elsewhere. All ranks call this."""
    weights = live_weights(engine, mesh)
    found = weights.read(list(weights.tensors), (0,))
    return found if mesh.is_first else None


class CheckpointWeights(Mapping[str, Tensor]):
    """The weights of a checkpoint by name, each read from the files when it is asked for."""

    collective = False

    def __init__(self, stored: Mapping[str, Stored]) -> None:
        self._stored = stored
        self.tensors: Mapping[str, Tensor] = {name: one.like for name, one in stored.items()}

    def read(self, names: Sequence[str], keepers: Collection[int]) -> Mapping[str, Tensor]:
        """These weights."""
        return {name: self[name] for name in names}

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def weights_of_checkpoint(folder: Path, *, precision: str, trust: bool = False) -> CheckpointWeights:
    """The weights of a checkpoint, without an engine and on one machine; the files with weights are verified first.

    Args:
        trust: load checkpoint files that may execute code.

    Raises:
        CheckpointError: the checkpoint is damaged, or holds more than tensors.
    """
    manifest = files.read_manifest(folder)
    parallel, split = manifest.get("expert_parallel", 1), manifest.get("tensor_parallel", 1)
    shards = opened(folder, trust=trust)
    damaged = shards.damaged(_kept_in_files(manifest["zero_stage"]))
    if damaged:
        raise CheckpointError(f"{folder} is damaged: {', '.join(damaged)}; use an older checkpoint")
    if manifest["zero_stage"] == 3:
        given: Any = {"experts": parallel, "is_spread": is_stacked}
        parts = [partitioned_weights(shards, DTYPES[precision], tensor=rank, **given) for rank in range(split)]
    else:
        files_ = [shards.read(f"mp_rank_{rank:02d}_model_states.pt")["module"] for rank in range(split)]
        parts = [{name: in_file(tensor) for name, tensor in one.items()} for one in files_]
    stored = {name: _of_parts(name, [part[name] for part in parts]) for name in parts[0]}
    if parallel > 1:
        if manifest["zero_stage"] < 3:
            stored |= experts_of_files(shards)
        layers = sorted({name.rpartition(".experts.")[0] for name in stored if name.endswith(".experts.w1")})
        derived = as_transformers({name: one.like for name, one in stored.items()}, layers)
        stored = {name: Stored(one.like, partial(_computed, one, stored)) for name, one in derived.items()}
    return CheckpointWeights(stored)


def _of_parts(name: str, parts: Sequence[Stored]) -> Stored:
    """A weight of which each tensor-parallel rank has stored its part, or all of it."""
    dim = split_dimension(name)
    if len(parts) == 1 or dim is None:
        return parts[0]
    return Stored(torch.cat([part.like for part in parts], dim), lambda: torch.cat([one.read() for one in parts], dim))


def _kept_in_files(stage: int) -> Callable[[str], bool]:
    """Whether the tensor at a place in the files is a weight, or its fp32 original, which ZeRO-3 keeps alone."""

    def wanted(place: str) -> bool:
        file, _, rest = place.partition("/")
        if file.endswith("_model_states.pt"):
            # At stage 0 the optimizer's states lie beside the weights.
            return not rest.startswith(f"{OPTIMIZER}/")
        return stage == 3 and (not rest or rest.startswith(f"{OPTIMIZER_STATE_DICT}/{FP32_FLAT_GROUPS}"))

    return wanted


def _computed(derived: Derived, stored: Mapping[str, Stored]) -> Tensor:
    return derived.compute({name: stored[name].read() for name in derived.sources})
