"""The nodes of a Ray cluster and their load, from three endpoints of Ray's dashboard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.errors import ShardyardError
from shardyard.launch.schedulers.base import GpuLoad, NodeStatus
from shardyard.launch.schedulers.ray.api import JobsApi, RayNode
from shardyard.planning.placement import Amount

# How long a dead node is shown, with the reason.
DEAD_SECONDS = 900.0
_MEGABYTE = 1024**2


def ask(api: JobsApi) -> list[NodeStatus]:
    """Nodes with their reserved resources and the load of their machines, the head first.

    Raises:
        ShardyardError: the cluster does not answer.
    """
    listed = api.nodes(alive=False)
    reserved: Mapping[str, Any] = {}
    machines: list[Any] = []
    # An autoscaler with another report format, or a head without agents, omits these; the nodes are listed anyway.
    with contextlib.suppress(ShardyardError, AttributeError, KeyError, TypeError):
        reserved = api.get("/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]["usageByNode"] or {}
    with contextlib.suppress(ShardyardError, AttributeError, KeyError, TypeError):
        machines = api.get("/nodes?view=summary")["data"]["summary"] or []
    return described(listed, reserved, machines, time.time())


def described(
    listed: Sequence[RayNode], reserved: Mapping[str, Any], machines: Sequence[Any], now: float
) -> list[NodeStatus]:
    """The nodes that are alive or died recently.

    Args:
        listed: nodes of Ray's state API.
        reserved: by node and resource, pairs of the reserved and the total amount.
        machines: measurements of Ray's agents.
        now: seconds since the epoch.
    """
    by_id = {}
    for machine in machines:
        with contextlib.suppress(AttributeError, KeyError, TypeError):
            by_id[machine["raylet"]["nodeId"]] = machine
    found = []
    for node in listed:
        dead = node.get("state") != "ALIVE"
        if dead and now - float(node.get("end_time_ms") or 0) / 1000 > DEAD_SECONDS:
            continue
        machine = {} if dead else by_id.get(node["node_id"], {})
        found.append(_described(node, machine, None if dead else reserved.get(node["node_id"]), dead=dead))
    return sorted(found, key=lambda one: (not one.up, not one.head, one.name, one.id))


def _described(node: RayNode, machine: Mapping[str, Any], reserved: Any, *, dead: bool) -> NodeStatus:
    resources = {} if dead else node.get("resources_total") or {}
    total = Amount(float(resources.get("CPU", 0.0)), float(resources.get("GPU", 0.0)))
    return NodeStatus(
        id=str(node["node_id"]),
        name=_name(node, machine),
        total=total,
        free=_free(total, reserved),
        address=str(node.get("node_ip") or ""),
        head=bool(node.get("is_head_node")),
        up=not dead,
        problem=str(node.get("state_message") or node.get("state") or "") if dead else "",
        cpu_percent=_load(machine),
        memory=_memory(machine),
        gpus=tuple(_gpus(machine)),
    )


def _name(node: RayNode, machine: Mapping[str, Any]) -> str:
    given = node.get("node_name")
    if given and given != node.get("node_ip"):
        return str(given)
    return str(machine.get("hostname") or node["node_id"][:8])


def _free(total: Amount, pairs: Any) -> Amount | None:
    if not isinstance(pairs, Mapping):
        return None
    try:
        taken = {name: float(pairs[name][0]) if name in pairs else 0.0 for name in ("CPU", "GPU")}
    except (TypeError, ValueError, IndexError):
        return None
    return Amount(total.cpus - taken["CPU"], total.gpus - taken["GPU"])


def _load(machine: Mapping[str, Any]) -> float | None:
    with contextlib.suppress(KeyError, TypeError, ValueError):
        return float(machine["cpu"])
    return None


def _memory(machine: Mapping[str, Any]) -> tuple[int, int] | None:
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        # Total, available, percentage, used; in bytes except the percentage.
        return int(machine["mem"][3]), int(machine["mem"][0])
    return None


def _gpus(machine: Mapping[str, Any]) -> list[GpuLoad]:
    found = []
    for gpu in machine.get("gpus") or []:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            memory = (int(gpu["memoryUsed"]) * _MEGABYTE, int(gpu["memoryTotal"]) * _MEGABYTE)
            found.append(GpuLoad(str(gpu["name"]), gpu.get("utilizationGpu"), memory))
    return found
