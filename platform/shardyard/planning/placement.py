"""Placement of workers: their bundles, how many share a node, and whether they fit a cluster. Pure arithmetic.

A bundle is Ray's term for the resources that one worker reserves. Workers that share a layer's experts form a group of
consecutive ranks on the same node, because they exchange activations in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shardyard.planning.readers import cpus_of
from shardyard.planning.shortage import Constraint, Resource, Shortage, shortage_in_words, worker_in_words
from shardyard.recipe.mesh import ranks_together
from shardyard.recipe.schema import Cluster, Network, Recipe
from shardyard.units import parse_bytes

Strategy = Literal["pack", "spread", "strict_pack", "strict_spread"]

# Ray counts resources in steps of 1/10000; this absorbs rounding errors in sums of fractions.
_STEP = 1e-4
_RESOURCES: tuple[Resource, ...] = ("gpus", "cpus", "memory")


@dataclass(frozen=True)
class Amount:
    """Resources as Ray counts them: cores, GPUs, and bytes of host memory."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True)
class Node:
    """A node of a cluster: its id in Ray, its total and its free resources."""

    id: str
    total: Amount
    free: Amount


@dataclass(frozen=True)
class Demand:
    """The resources that a run requests from a cluster.

    workers: ranks, one bundle each.
    group: consecutive ranks that must share a node; divides `workers`.
    most_per_node: upper limit of ranks on a node, a multiple of `group`; None for no limit.
    cpus_given: whether the recipe asks for the cores; others may be fewer where a cluster has fewer.
    """

    workers: int
    bundle: Amount
    group: int
    strategy: Strategy
    most_per_node: int | None
    cpus_given: bool = True


@dataclass(frozen=True)
class Placement:
    """Node id and number of ranks, in the order of ranks: the first node holds ranks 0 to n - 1."""

    ranks: tuple[tuple[str, int], ...]

    @property
    def node_of_rank(self) -> list[str]:
        """The node of each rank."""
        return [node for node, count in self.ranks for _ in range(count)]


# Leaves the choice to Ray.
ANYWHERE = Placement(())


@dataclass(frozen=True)
class Verdict:
    """Whether a run fits a cluster.

    now: the placement of its workers on free resources; None if they do not fit at the moment.
    ever: whether they fit once the cluster is idle.
    shortage: the missing resources, if it does not fit.
    """

    now: Placement | None
    ever: bool
    shortage: Shortage

    @property
    def sentence(self) -> str:
        """Required and free resources, such as `needs 8 GPUs on 2 nodes; 4 free`."""
        return shortage_in_words(self.shortage)


def demand_of(recipe: Recipe, *, gpu: bool, workers: int | None = None) -> Demand:
    """The resources that the ranks of `recipe` request.

    Args:
        gpu: whether ranks compute on GPUs; determines the number of GPUs if `cluster.gpus_per_worker` is not set.
        workers: ranks of the plan, if they differ from `cluster.workers`.
    """
    asked = ask(recipe.cluster, gpu=gpu, workers=workers)
    bundle = replace(asked.bundle, cpus=float(cpus_of(recipe, gpu=gpu)[0]))
    given = recipe.cluster.cpus_per_worker is not None
    return replace(asked, bundle=bundle, group=ranks_together(recipe), cpus_given=given)


def within(demand: Demand, nodes: Sequence[Node]) -> Demand:
    """The demand, with fewer cores a worker if it then fits the idle nodes and the recipe leaves their number open."""
    if demand.cpus_given:
        return demand
    for cpus in range(int(demand.bundle.cpus), 0, -1):
        fewer = replace(demand, bundle=replace(demand.bundle, cpus=float(cpus)))
        if judge(fewer, nodes).ever:
            return fewer
    return demand


def ask(settings: Cluster, *, gpu: bool, workers: int | None = None) -> Demand:
    """The least request of ranks that share nothing; arguments as for `demand_of`."""
    gpus = settings.gpus_per_worker if settings.gpus_per_worker is not None else float(gpu)
    # On a CPU rank the device is the host, so its memory is the host's.
    memory = 0 if gpu or settings.memory_per_worker is None else parse_bytes(settings.memory_per_worker)
    return Demand(
        workers=workers or settings.workers,
        bundle=Amount(cpus=float(settings.cpus_per_worker or 1), gpus=gpus, memory=float(memory)),
        group=1,
        strategy=settings.placement or ("strict_spread" if settings.workers_per_node == 1 else "pack"),
        most_per_node=settings.workers_per_node,
    )


def judge(demand: Demand, nodes: Sequence[Node]) -> Verdict:
    """Whether and where a run fits, now and on the idle cluster, and which resources are missing."""
    now = place(demand, nodes)
    ever = now or _place(demand, {node.id: node.total for node in nodes})
    count = _num_nodes(demand, ever)
    if now is not None:
        shortage = Shortage(_main(demand), _needed(demand, _main(demand)), count)
    elif ever is not None:
        shortage = _shortage(demand, [node.free for node in nodes], count, "free")
    else:
        shortage = _shortage(demand, [node.total for node in nodes], count, "cluster")
    return Verdict(now, ever is not None, shortage)


def place(demand: Demand, nodes: Sequence[Node]) -> Placement | None:
    """The placement of the workers on free resources; None if they do not fit."""
    return _place(demand, {node.id: node.free for node in nodes})


def room(demand: Demand, amount: Amount) -> int:
    """Number of ranks that fit on a node with `amount`, in whole groups."""
    bundle = demand.bundle
    ranks = _times(amount.cpus, bundle.cpus)
    if bundle.gpus:
        # The fraction of a worker must be on a single GPU, so the remainders of two GPUs cannot be combined.
        num_whole = math.floor(amount.gpus + _STEP)
        each = _times(1.0, bundle.gpus)
        ranks = min(ranks, num_whole * each + _times(amount.gpus - num_whole, bundle.gpus))
    if bundle.memory:
        ranks = min(ranks, _times(amount.memory, bundle.memory))
    if demand.most_per_node is not None:
        ranks = min(ranks, demand.most_per_node)
    if demand.strategy == "strict_spread":
        ranks = min(ranks, 1)
    return max(0, ranks) // demand.group * demand.group


def _place(demand: Demand, amounts: Mapping[str, Amount]) -> Placement | None:
    if not demand.bundle.gpus and demand.strategy in ("pack", "strict_pack"):
        # Ranks that compute on the CPU leave nodes with GPUs to runs that need them, as Ray does.
        plain = {node: amount for node, amount in amounts.items() if not amount.gpus}
        if 0 < len(plain) < len(amounts) and (found := _place_anywhere(demand, plain)) is not None:
            return found
    return _place_anywhere(demand, amounts)


def _place_anywhere(demand: Demand, amounts: Mapping[str, Amount]) -> Placement | None:
    rooms = {node: ranks for node, amount in amounts.items() if (ranks := room(demand, amount))}
    if demand.strategy == "strict_pack":
        rooms = {node: ranks for node, ranks in rooms.items() if ranks >= demand.workers}
    if sum(rooms.values()) < demand.workers:
        return None
    counts = _spread(demand, rooms) if demand.strategy == "spread" else _pack(demand, rooms)
    return Placement(tuple((node, counts[node]) for node in amounts if counts.get(node)))


def _pack(demand: Demand, rooms: Mapping[str, int]) -> dict[str, int]:
    """Use as few nodes as possible; the last ranks take the smallest node that fits, so that large nodes stay free."""
    counts: dict[str, int] = {}
    left = demand.workers
    while left:
        others = {node: ranks for node, ranks in rooms.items() if node not in counts}
        holding = {node: ranks for node, ranks in others.items() if ranks >= left}
        node = min(holding, key=holding.__getitem__) if holding else max(others, key=others.__getitem__)
        counts[node] = min(left, rooms[node])
        left -= counts[node]
    return counts


def _spread(demand: Demand, rooms: Mapping[str, int]) -> dict[str, int]:
    """Spread as evenly as possible, one group at a time."""
    counts = dict.fromkeys(rooms, 0)
    for _ in range(demand.workers // demand.group):
        open_nodes = [node for node in rooms if counts[node] < rooms[node]]
        counts[min(open_nodes, key=lambda node: (counts[node], -rooms[node]))] += demand.group
    return counts


def _times(have: float, need: float) -> int:
    return math.floor((have + _STEP) / need)


def _num_nodes(demand: Demand, ever: Placement | None) -> int | None:
    if ever is not None:
        return len(ever.ranks)
    if demand.strategy == "strict_pack":
        return 1
    if demand.strategy == "strict_spread":
        return demand.workers
    return None if demand.most_per_node is None else math.ceil(demand.workers / demand.most_per_node)


def _main(demand: Demand) -> Resource:
    """The resource by which ranks are counted."""
    return "gpus" if demand.bundle.gpus else "cpus"


def _of(amount: Amount, resource: Resource) -> float:
    return {"gpus": amount.gpus, "cpus": amount.cpus, "memory": amount.memory}[resource]


def _needed(demand: Demand, resource: Resource) -> float:
    return demand.workers * _of(demand.bundle, resource)


def _shortage(
    demand: Demand, amounts: Sequence[Amount], num_nodes: int | None, of: Literal["free", "cluster"]
) -> Shortage:
    """The required and the available resources and, if the total would suffice, why the run still does not fit."""
    for resource in _RESOURCES:
        needed, have = _needed(demand, resource), sum(_of(amount, resource) for amount in amounts)
        if needed > have + _STEP:
            return Shortage(resource, needed, num_nodes, have, of)
    main = _main(demand)
    rooms = [room(demand, amount) for amount in amounts]
    constraint, limit = _constraint(demand)
    return Shortage(
        main,
        _needed(demand, main),
        num_nodes,
        sum(_of(amount, main) for amount in amounts),
        of,
        workers=demand.workers,
        workers_held=max(rooms, default=0) if demand.strategy == "strict_pack" else sum(rooms),
        constraint=constraint,
        limit=limit,
        worker=_worker(demand.bundle),
    )


def _constraint(demand: Demand) -> tuple[Constraint, int | None]:
    if demand.strategy == "strict_pack":
        return "one_node", None
    if demand.strategy == "strict_spread":
        return "one_per_node", None
    if demand.group > 1:
        return "group", demand.group
    if demand.most_per_node is not None:
        return "workers_per_node", demand.most_per_node
    return "worker", None


def _worker(bundle: Amount) -> tuple[tuple[Resource, float], ...]:
    return tuple((resource, value) for resource in _RESOURCES if (value := _of(bundle, resource)))


def bundle_in_words(bundle: Amount) -> str:
    """`1 GPU and 4 CPU cores`."""
    return worker_in_words(_worker(bundle))


def placement_in_words(demand: Demand) -> str:
    """`pack, 4 ranks that share layers on one node, at most 8 on a node`."""
    parts: list[str] = [demand.strategy]
    if demand.group > 1:
        parts.append(f"{demand.group} ranks that share layers on one node")
    if demand.most_per_node is not None:
        parts.append(f"at most {demand.most_per_node} on a node")
    return ", ".join(parts)


def network_in_words(network: Network, *, gpu: bool) -> str:
    """The network settings that are known before the hosts are chosen."""
    interface = (
        f"interface {network.interface}" if network.interface else "interface of the address Ray knows a host by"
    )
    rdma = "" if not gpu else ", RDMA left to NCCL" if network.rdma == "auto" else ", TCP without RDMA"
    return f"{interface}{rdma}; a collective may take {network.timeout:g} s"
