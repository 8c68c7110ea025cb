"""Where workers go: their bundles, how many share a node, and whether a cluster holds them. Pure arithmetic.

A bundle, in Ray's words, is what one worker reserves. Workers that hold one layer's experts together form a group of
consecutive ranks and stay on one node, because they exchange activations in every layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from shardyard.recipe.mesh import ranks_together
from shardyard.recipe.schema import Cluster, Network, Recipe
from shardyard.units import format_bytes, parse_bytes

Strategy = Literal["pack", "spread", "strict_pack", "strict_spread"]

# Ray counts resources in steps of 1/10000; sums of fractions end a little beside them.
_STEP = 1e-4


@dataclass(frozen=True)
class Amount:
    """Resources in Ray's sense: cores, GPUs, and bytes of the host's memory."""

    cpus: float
    gpus: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True)
class Node:
    """A node of a cluster: its id in Ray, what it has, and what nobody has reserved."""

    id: str
    total: Amount
    free: Amount


@dataclass(frozen=True)
class Demand:
    """What a run asks of a cluster.

    workers: ranks, one bundle each.
    group: consecutive ranks that must share a node; divides `workers`.
    most_per_node: upper limit of ranks on a node, a multiple of `group`; None for none.
    """

    workers: int
    bundle: Amount
    group: int
    strategy: Strategy
    most_per_node: int | None


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
    """Whether a cluster holds a run.

    now: where its workers go on what is free; None where they do not fit at the moment.
    ever: whether they fit once nobody else uses the cluster.
    sentence: what it needs and what there is, such as `needs 8 GPUs on 2 nodes; 4 free`.
    """

    now: Placement | None
    ever: bool
    sentence: str


def demand_of(recipe: Recipe, *, gpu: bool, workers: int | None = None) -> Demand:
    """What the ranks of `recipe` ask for.

    Args:
        gpu: whether ranks compute on GPUs; decides about GPUs where `cluster.gpus_per_worker` is not given.
        workers: ranks of the plan, where they differ from `cluster.workers`.
    """
    return replace(ask(recipe.cluster, gpu=gpu, workers=workers), group=ranks_together(recipe))


def ask(settings: Cluster, *, gpu: bool, workers: int | None = None) -> Demand:
    """What ranks that share nothing ask for; arguments as those of `demand_of`."""
    gpus = settings.gpus_per_worker if settings.gpus_per_worker is not None else float(gpu)
    # On a CPU rank the device is the host, so its memory is the host's.
    memory = 0 if gpu or settings.memory_per_worker is None else parse_bytes(settings.memory_per_worker)
    return Demand(
        workers=workers or settings.workers,
        bundle=Amount(cpus=float(settings.cpus_per_worker), gpus=gpus, memory=float(memory)),
        group=1,
        strategy=settings.placement or ("strict_spread" if settings.workers_per_node == 1 else "pack"),
        most_per_node=settings.workers_per_node,
    )


def judge(demand: Demand, nodes: Sequence[Node]) -> Verdict:
    """Whether and where a run fits, now and ever, in numbers and in words."""
    now = place(demand, nodes)
    ever = now or _place(demand, {node.id: node.total for node in nodes})
    where = _where(demand, ever)
    if now is not None:
        sentence = f"needs {_needed(demand)}{where}"
    elif ever is not None:
        sentence = f"needs {_needs(demand, [node.free for node in nodes], where, 'free')}"
    else:
        sentence = f"needs {_needs(demand, [node.total for node in nodes], where, 'in the cluster')}"
    return Verdict(now, ever is not None, sentence)


def place(demand: Demand, nodes: Sequence[Node]) -> Placement | None:
    """Where the workers go on what is free; None where they do not fit."""
    return _place(demand, {node.id: node.free for node in nodes})


def room(demand: Demand, amount: Amount) -> int:
    """Ranks that may go to a node with so much, in whole groups."""
    bundle = demand.bundle
    ranks = _times(amount.cpus, bundle.cpus)
    if bundle.gpus:
        # A worker's fraction lies on one GPU, so what two GPUs have left does not add up.
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
        # Ranks that compute on the CPU leave nodes with GPUs to those that need them, as Ray does.
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
    """As few nodes as possible; the last ranks take the smallest node that holds them, so that large ones stay free."""
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
    """As evenly as nodes have room, one group at a time."""
    counts = dict.fromkeys(rooms, 0)
    for _ in range(demand.workers // demand.group):
        open_nodes = [node for node in rooms if counts[node] < rooms[node]]
        counts[min(open_nodes, key=lambda node: (counts[node], -rooms[node]))] += demand.group
    return counts


def _times(have: float, need: float) -> int:
    return math.floor((have + _STEP) / need)


def _where(demand: Demand, ever: Placement | None) -> str:
    if ever is not None:
        count = len(ever.ranks)
    elif demand.strategy == "strict_pack":
        count = 1
    elif demand.strategy == "strict_spread":
        count = demand.workers
    elif demand.most_per_node is not None:
        count = math.ceil(demand.workers / demand.most_per_node)
    else:
        return ""
    return f" on {count} node{'s' if count != 1 else ''}"


def _needed(demand: Demand) -> str:
    name = "gpus" if demand.bundle.gpus else "cpus"
    return _amount(name, demand.workers * getattr(demand.bundle, name))


def _needs(demand: Demand, amounts: Sequence[Amount], where: str, there: str) -> str:
    """What is needed, what there is of it, and, where the sum would do, why it still does not fit."""
    for name in ("gpus", "cpus", "memory"):
        needed = demand.workers * getattr(demand.bundle, name)
        have = sum(getattr(amount, name) for amount in amounts)
        if needed > have + _STEP:
            return f"{_amount(name, needed)}{where}; {_number(name, have)} {there}"
    name = "gpus" if demand.bundle.gpus else "cpus"
    have = sum(getattr(amount, name) for amount in amounts)
    rooms = [room(demand, amount) for amount in amounts]
    held = max(rooms, default=0) if demand.strategy == "strict_pack" else sum(rooms)
    return (
        f"{_needed(demand)}{where}; {_number(name, have)} {there}, but they hold {held} of {demand.workers} workers"
        f"{_because(demand)}"
    )


def _because(demand: Demand) -> str:
    if demand.strategy == "strict_pack":
        return " on one node, as cluster.placement strict_pack asks"
    if demand.strategy == "strict_spread":
        return ", one a node"
    if demand.group > 1:
        return f", {demand.group} that share experts on one node (model.experts.parallel)"
    if demand.most_per_node is not None:
        return f", at most {demand.most_per_node} a node (cluster.workers_per_node)"
    return f", each with {bundle_in_words(demand.bundle)}"


def bundle_in_words(bundle: Amount) -> str:
    """`1 GPU and 4 CPU cores`."""
    parts = [_amount(name, value) for name in ("gpus", "cpus", "memory") if (value := getattr(bundle, name))]
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def placement_in_words(demand: Demand) -> str:
    """`pack, 4 ranks that share experts on one node, at most 8 on a node`."""
    parts: list[str] = [demand.strategy]
    if demand.group > 1:
        parts.append(f"{demand.group} ranks that share experts on one node")
    if demand.most_per_node is not None:
        parts.append(f"at most {demand.most_per_node} on a node")
    return ", ".join(parts)


def network_in_words(network: Network, *, gpu: bool) -> str:
    """What can be said of the network before any host is known."""
    interface = (
        f"interface {network.interface}" if network.interface else "interface of the address Ray knows a host by"
    )
    rdma = "" if not gpu else ", RDMA left to NCCL" if network.rdma == "auto" else ", TCP without RDMA"
    return f"{interface}{rdma}; a collective may take {network.timeout:g} s"


def _amount(name: str, value: float) -> str:
    unit = {"gpus": "GPU", "cpus": "CPU core", "memory": "of memory"}[name]
    plural = "s" if name != "memory" and value != 1 else ""
    return f"{_number(name, value)} {unit}{plural}"


def _number(name: str, value: float) -> str:
    return format_bytes(int(value)) if name == "memory" else f"{round(value, 4):g}"
