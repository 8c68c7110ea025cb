"""The nodes of a cluster as the page shows them, from three answers of Ray's dashboard."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.errors import ShardyardError
from shardyard.launch.schedulers.ray.api import JobsApi

# How long a node that died is still shown, with the reason.
DEAD_SECONDS = 900.0
_RESOURCES = ("CPU", "GPU")
_MEGABYTE = 1024**2


def ask(api: JobsApi) -> list[dict[str, object]]:
    """Nodes with what of them is reserved and how busy their machines are, the head first.

    Raises:
        ShardyardError: the cluster does not answer.
    """
    listed = api.nodes(alive=False)
    reserved: Mapping[str, Any] = {}
    machines: list[Any] = []
    # An autoscaler that reports otherwise, or a head without agents, leaves these out; the nodes are there anyhow.
    with contextlib.suppress(ShardyardError, AttributeError, KeyError, TypeError):
        reserved = api.get("/api/cluster_status")["data"]["clusterStatus"]["loadMetricsReport"]["usageByNode"] or {}
    with contextlib.suppress(ShardyardError, AttributeError, KeyError, TypeError):
        machines = api.get("/nodes?view=summary")["data"]["summary"] or []
    return described(listed, reserved, machines, time.time())


def described(
    listed: Sequence[Mapping[str, Any]], reserved: Mapping[str, Any], machines: Sequence[Any], now: float
) -> list[dict[str, object]]:
    """The nodes that live or died a short time ago.

    Args:
        listed: nodes of Ray's state API.
        reserved: by node, pairs of what is taken and what there is, by resource.
        machines: what Ray's agents measure.
        now: seconds since the epoch.

    Returns:
        For each: name, address, head, state, problem; `total` and `free` by resource (`free` is None where it is not
        known); `cpu_percent`, `memory` as used and total bytes, and `gpus` with name, percent, used and total bytes.
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
        total = {name: float((node.get("resources_total") or {}).get(name, 0.0)) for name in _RESOURCES}
        machine = {} if dead else by_id.get(node["node_id"], {})
        found.append(
            {
                "id": node["node_id"],
                "name": _name(node, machine),
                "address": node.get("node_ip"),
                "head": bool(node.get("is_head_node")),
                "state": node.get("state"),
                "problem": node.get("state_message") if dead else None,
                "total": {} if dead else total,
                "free": None if dead else _free(total, reserved.get(node["node_id"])),
                **_measured(machine),
            }
        )
    return sorted(found, key=lambda one: (one["state"] != "ALIVE", not one["head"], one["name"], one["id"]))


def _name(node: Mapping[str, Any], machine: Mapping[str, Any]) -> str:
    given = node.get("node_name")
    if given and given != node.get("node_ip"):
        return str(given)
    return str(machine.get("hostname") or node["node_id"][:8])


def _free(total: Mapping[str, float], pairs: Any) -> dict[str, float] | None:
    if not isinstance(pairs, Mapping):
        return None
    try:
        return {name: there - float(pairs[name][0] if name in pairs else 0.0) for name, there in total.items()}
    except (TypeError, ValueError, IndexError):
        return None


def _measured(machine: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"cpu_percent": None, "memory": None, "gpus": []}
    with contextlib.suppress(KeyError, TypeError, ValueError):
        found["cpu_percent"] = float(machine["cpu"])
    with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):
        # In bytes: all, what is available, per cent, what is used.
        found["memory"] = [int(machine["mem"][3]), int(machine["mem"][0])]
    for gpu in machine.get("gpus") or []:
        with contextlib.suppress(KeyError, TypeError, ValueError):
            found["gpus"].append(
                {
                    "name": str(gpu["name"]),
                    "percent": gpu.get("utilizationGpu"),
                    "memory": [int(gpu["memoryUsed"]) * _MEGABYTE, int(gpu["memoryTotal"]) * _MEGABYTE],
                }
            )
    return found
