"""The assignment of ranks to workers by node and GPU, and the GPUs that each rank sees. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardyard.tracking.run.info import Place
from shardyard.tracking.watch.beat import Handle


@dataclass(frozen=True)
class Member:
    """The report of a worker once it has its resources.

    node: the id of its node in Ray; one host may run several.
    address: of its host, as Ray knows it.
    gpus: ids of the GPUs that Ray gave it.
    port: for the other ranks to join it if it becomes rank 0.
    threads: OMP_NUM_THREADS of its process, which Ray sets by the cores that it gives; "" if it is not set.
    beat: how processes of its host read what it does.
    """

    node: str
    address: str
    host: str
    pid: int
    gpus: tuple[str, ...]
    port: int
    threads: str = ""
    beat: Handle | None = None


@dataclass(frozen=True)
class Seat:
    """The place of a rank among the others.

    local_rank, local_world_size, node_rank: as in torchrun, per host. visible_gpus: the GPUs of all ranks of its node;
    NCCL reaches neighbours directly only if a process sees their GPUs too. gpu: index of its own GPU among these; None
    on a CPU.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    visible_gpus: tuple[str, ...] = ()
    gpu: int | None = None

    @property
    def device(self) -> str:
        """torch's name of this rank's device."""
        return "cpu" if self.gpu is None else f"cuda:{self.gpu}"


def rank_order(members: Sequence[Member]) -> list[int]:
    """Indices of `members` in the order of ranks: by node in the order of bundles, then by GPU."""
    nodes = list(dict.fromkeys(member.node for member in members))

    def key(index: int) -> tuple[int, tuple[int, int, str]]:
        member = members[index]
        return nodes.index(member.node), min(map(_gpu_order, member.gpus), default=(0, 0, ""))

    return sorted(range(len(members)), key=key)


def seats_of(members: Sequence[Member], *, gpu: bool) -> list[Seat]:
    """The seats of members in the order of ranks. Ranks that compute on the CPU (not `gpu`) ignore their reserved
    GPUs."""
    hosts = list(dict.fromkeys(member.address for member in members))
    on_host: dict[str, int] = dict.fromkeys(hosts, 0)
    on_node: dict[str, set[str]] = {}
    for member in members:
        on_node.setdefault(member.node, set()).update(member.gpus if gpu else ())
    sizes = {host: sum(member.address == host for member in members) for host in hosts}
    seats = []
    for rank, member in enumerate(members):
        visible = tuple(sorted(on_node[member.node], key=_gpu_order))
        seats.append(
            Seat(
                rank=rank,
                world_size=len(members),
                local_rank=on_host[member.address],
                local_world_size=sizes[member.address],
                node_rank=hosts.index(member.address),
                visible_gpus=visible,
                gpu=visible.index(min(member.gpus, key=_gpu_order)) if visible else None,
            )
        )
        on_host[member.address] += 1
    return seats


def places_of(members: Sequence[Member]) -> list[Place]:
    """Nodes in the order of ranks: id, address, host name, ranks, and the process and GPUs of each rank."""
    places: dict[str, Place] = {}
    for rank, member in enumerate(members):
        place = places.setdefault(
            member.node,
            {
                "node": member.node,
                "address": member.address,
                "host": member.host,
                "ranks": [],
                "pids": [],
                "gpus": [],
            },
        )
        place["ranks"].append(rank)
        place["pids"].append(member.pid)
        place["gpus"].append(list(member.gpus))
    return list(places.values())


def parted_groups(places: Sequence[Place], group: int) -> int:
    """The number of groups of consecutive ranks that span more than one node."""
    node = {rank: place["node"] for place in places for rank in place["ranks"]}
    starts = range(0, len(node), group)
    return sum(1 for start in starts if len({node[rank] for rank in range(start, start + group)}) > 1)


def _gpu_order(gpu: str) -> tuple[int, int, str]:
    """Sort key of a GPU id: numbers sort numerically, before the UUIDs of GPU slices."""
    return (0, int(gpu), "") if gpu.isdecimal() else (1, 0, gpu)
