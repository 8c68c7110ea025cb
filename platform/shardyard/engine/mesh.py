"""The mesh from the view of one rank: its index along each axis, the other ranks of the axis, and collectives."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, distributed

from shardyard.engine.world import Rank
from shardyard.recipe.mesh import MeshShape, data_mesh

AXES = ("world", "data", "zero", "tensor", "sequence", "expert")


@dataclass(frozen=True)
class Axis:
    """One axis, or several joined axes, from the view of this rank.

    size: number of ranks along it. index: index of this rank among them. ranks: their numbers in the world, in order.
    group: their process group; None if there is only one rank.
    """

    size: int
    index: int
    ranks: tuple[int, ...]
    group: distributed.ProcessGroup | None

    def sum(self, tensor: Tensor) -> None:
        """Replace a tensor with its sum over the ranks of the axis; all of them call this."""
        if self.group is not None:
            distributed.all_reduce(tensor, group=self.group)

    def start_sum(self, tensor: Tensor) -> distributed.Work | None:
        """The same, asynchronously: the tensor is the sum once the returned work is done, or already if it is None."""
        return None if self.group is None else distributed.all_reduce(tensor, group=self.group, async_op=True)

    def gather(self, value: Any) -> list[Any]:
        """The picklable `value` of each rank of the axis, by index; all of them call this."""
        if self.group is None:
            return [value]
        gathered: list[Any] = [None] * self.size
        distributed.all_gather_object(gathered, value, group=self.group)
        return gathered

    def from_first(self, value: Any) -> Any:
        """The picklable `value` of the first rank of the axis; all of them call this."""
        if self.group is None:
            return value
        holder = [value if self.index == 0 else None]
        distributed.broadcast_object_list(holder, src=self.ranks[0], group=self.group)
        return holder[0]


@dataclass(frozen=True)
class Mesh:
    """The position of this rank in the mesh. Sizes and groups belong to the axes.

    world: all ranks, for joint decisions and for files that the ranks write or check in shares.
    data: the ranks that read different rows, for data streams.
    zero: the ranks that hold the same weights, along `data` and `sequence`: they compute different tokens, so losses
        and gradients are sums over them; ZeRO shards over them.
    tensor: the ranks that share the matrices of a layer. sequence: the ranks that share the tokens of a row.
    expert: the data-parallel ranks that share the experts of a layer.
    """

    shape: MeshShape
    here: Rank
    world: Axis
    data: Axis
    zero: Axis
    tensor: Axis
    sequence: Axis
    expert: Axis

    @property
    def rank(self) -> int:
        """The number of this rank in the world."""
        return self.here.rank

    @property
    def device(self) -> torch.device:
        """The device of this rank."""
        return self.here.device

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes shared files."""
        return self.here.is_first

    def from_first(self, value: Any) -> Any:
        """Broadcast rank 0's picklable `value`; all ranks call this."""
        return self.world.from_first(value)


def make_mesh(shape: MeshShape, here: Rank) -> Mesh:
    """The mesh of a rank, with its process groups; all ranks call this after initialising `torch.distributed`."""
    assert here.world_size == shape.world, f"a plan for {shape.world} ranks is carried out by {here.world_size}"
    return Mesh(shape, here, **{name: _axis(shape, name, here.rank) for name in AXES})


def single_process(device: torch.device) -> Mesh:
    """The mesh of a single process, without `torch.distributed`."""
    one = Axis(size=1, index=0, ranks=(0,), group=None)
    return Mesh(data_mesh(1), Rank(rank=0, world_size=1, local_rank=0, device=device), one, one, one, one, one, one)


def separate(axis: Axis) -> Axis:
    """The same axis with a process group of its own on the hosts, for a thread beside training; all ranks call this."""
    if axis.group is None:
        return axis
    assert axis.size == distributed.get_world_size(), "an axis over all ranks"
    return replace(axis, group=distributed.new_group(backend="gloo"))


def _axis(shape: MeshShape, name: str, rank: int) -> Axis:
    return Axis(shape.size(name), shape.index(name, rank), shape.ranks(name, rank), _group(shape, name))


def _group(shape: MeshShape, name: str) -> distributed.ProcessGroup | None:
    """This rank's group along an axis. An axis over all ranks needs no separate group."""
    if shape.size(name) == 1:
        return None
    if shape.size(name) == shape.world:
        return distributed.group.WORLD
    # Every rank takes part in creating all groups, in the same order.
    groups = [list(group) for group in shape.groups(name)]
    own, _ = distributed.new_subgroups_by_enumeration(groups)  # type: ignore[no-untyped-call]
    return cast("distributed.ProcessGroup", own)
