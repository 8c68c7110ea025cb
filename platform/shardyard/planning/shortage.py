"""Why a run cannot be placed, in numbers and in words. Imports only the standard library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardyard.units import format_bytes

# The resource that is short: GPUs, CPU cores, or bytes of host memory.
Resource = Literal["gpus", "cpus", "memory"]
# Why workers do not fit although the total would suffice: all must be on one node, one per node, groups of ranks on
# one node, an upper limit per node, or the resources of a single worker.
Constraint = Literal["one_node", "one_per_node", "group", "workers_per_node", "worker"]


@dataclass(frozen=True)
class Shortage:
    """The resources that a run needs and those that are available.

    resource: the resource that is short, or by which workers are counted. needed: its total over all workers.
    nodes: number of nodes that the workers need; None if it is open.
    available: the available amount; None if it suffices. of: whether free resources or the whole cluster are counted.
    workers_held: number of workers that fit, if the total would suffice for all `workers`. constraint: why no more fit.
    limit: workers per group or node, for the constraint. worker: resources of one, such as {"gpus": 1, "cpus": 4}.
    """

    resource: Resource
    needed: float
    nodes: int | None = None
    available: float | None = None
    of: Literal["free", "cluster"] = "free"
    workers: int | None = None
    workers_held: int | None = None
    constraint: Constraint | None = None
    limit: int | None = None
    worker: tuple[tuple[Resource, float], ...] = ()


def shortage_in_words(shortage: Shortage) -> str:
    """`needs 8 GPUs on 2 nodes; 4 free`."""
    needed = f"needs {needed_in_words(shortage)}"
    if shortage.available is None:
        return needed
    there = "free" if shortage.of == "free" else "in the cluster"
    sentence = f"{needed}; {number_in_words(shortage.resource, shortage.available)} {there}"
    if shortage.workers_held is None:
        return sentence
    return f"{sentence}, but they hold {shortage.workers_held} of {shortage.workers} workers{_because(shortage)}"


def needed_in_words(shortage: Shortage) -> str:
    """`8 GPUs on 2 nodes`."""
    nodes = shortage.nodes
    where = "" if nodes is None else f" on {nodes} node{'s' if nodes != 1 else ''}"
    return f"{amount_in_words(shortage.resource, shortage.needed)}{where}"


def _because(shortage: Shortage) -> str:
    match shortage.constraint:
        case "one_node":
            return " on one node, as cluster.placement strict_pack asks"
        case "one_per_node":
            return ", one a node"
        case "group":
            return f", {shortage.limit} that share layers on one node (parallel)"
        case "workers_per_node":
            return f", at most {shortage.limit} a node (cluster.workers_per_node)"
        case _:
            return f", each with {worker_in_words(shortage.worker)}"


def worker_in_words(worker: tuple[tuple[Resource, float], ...]) -> str:
    """`1 GPU and 4 CPU cores`."""
    parts = [amount_in_words(resource, value) for resource, value in worker]
    return " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def amount_in_words(resource: Resource, value: float) -> str:
    """`4 GPUs`, `1 CPU core`, `2.0 GiB of memory`."""
    unit = {"gpus": "GPU", "cpus": "CPU core", "memory": "of memory"}[resource]
    plural = "s" if resource != "memory" and value != 1 else ""
    return f"{number_in_words(resource, value)} {unit}{plural}"


def number_in_words(resource: Resource, value: float) -> str:
    """`4`, `0.5`, `2.0 GiB`."""
    return format_bytes(int(value)) if resource == "memory" else f"{round(value, 4):g}"
