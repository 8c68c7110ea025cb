"""The start of cluster nodes: shares of a machine's cores and GPUs, `ray start`, environment. Pure."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard.errors import HardwareError, UsageError
from shardyard.launch.local_cluster.nodes import LOOPBACK_ENVIRONMENT, ClusterRecord, token_environment

# Marks the processes of a cluster; the value is the id in the record.
CLUSTER_ID = "SHARDYARD_CLUSTER_ID"
# A node label with the name given by `up` or the host.
NAME_LABEL = "shardyard.node"
# A node label with the id in the record, because host names may not be unique.
START_LABEL = "shardyard.start"
# Large tensors of a run never pass through the object store, unlike batches of Ray Data and checkpoints of Ray Tune.
OBJECT_STORE_BYTES = 1 << 30
# So long do nodes, drivers and ranks look for a head that does not answer; then they end. Ray's own limit is a minute.
# A head that cannot reach a node for this long counts it as dead, too.
HEAD_SECONDS = 15
_HEAD_LIMIT = "gcs_rpc_server_reconnect_timeout_s"
# The `ray` of this interpreter, independent of PATH.
_RAY = (sys.executable, "-m", "ray.scripts.scripts")
_RAY_ON_LOOPBACK = (sys.executable, "-m", "shardyard.launch.local_cluster.loopback")


@dataclass(frozen=True)
class NodePlan:
    """The resources of one node.

    cpus: cores for Ray to schedule; None lets Ray detect them.
    gpus: ids of this node's GPUs; None lets Ray detect them.
    """

    name: str
    cpus: int | None
    gpus: tuple[str, ...] | None


@dataclass(frozen=True)
class Ports:
    """The configurable ports of a head; the system chooses all others."""

    gcs: int
    dashboard: int
    client: int


def plan_nodes(
    count: int, *, cpus: int | None, gpus: int | None, cores: int, gpu_ids: Sequence[str]
) -> tuple[NodePlan, ...]:
    """Shares of one machine for `count` nodes, the head first. For a single node Ray detects the resources.

    Args:
        cpus: cores of each node; None divides those of the machine, at least one per node.
        gpus: GPUs of each node; None divides those of the machine. No GPU is assigned to two nodes.
        gpu_ids: the usable GPUs, named as in CUDA_VISIBLE_DEVICES.

    Raises:
        HardwareError: there are fewer GPUs than requested.
    """
    if gpus is not None and gpus * count > len(gpu_ids):
        raise HardwareError(
            f"{count} node(s) with {gpus} GPU(s) each need {gpus * count}, this machine has {len(gpu_ids)}; lower "
            "--gpus or --nodes."
        )
    if count == 1 and gpus is None:
        return (NodePlan("head", cpus, None),)
    sizes = [gpus] * count if gpus is not None else _divide(len(gpu_ids), count)
    ends = [sum(sizes[: index + 1]) for index in range(count)]
    slices = [tuple(gpu_ids[end - size : end]) for size, end in zip(sizes, ends, strict=True)]
    # Logical cores: tests of large clusters may request more than the machine has.
    shares: list[int | None] = [cpus] * count
    if cpus is None and count > 1:
        shares = [max(1, share) for share in _divide(cores, count)]
    names = ["head", *(f"node-{index}" for index in range(1, count))]
    return tuple(NodePlan(*parts) for parts in zip(names, shares, slices, strict=True))


def _divide(total: int, count: int) -> list[int]:
    """Integer shares that sum to `total`, larger ones first."""
    return [total // count + (1 if index < total % count else 0) for index in range(count)]


def visible_gpus(visible: str | None, devices: int) -> tuple[str, ...]:
    """The visible GPUs: CUDA_VISIBLE_DEVICES, or all devices of the machine."""
    if visible is None:
        return tuple(str(index) for index in range(devices))
    return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))


def head_command(
    node: NodePlan, cluster: ClusterRecord, ports: Ports, environment: Mapping[str, str] | None = None
) -> list[str]:
    """The `ray start` command of the head; it stays in the foreground and ends the node when a daemon dies.

    Args:
        environment: in which it starts. With an external Redis, or a limit of its own, the cluster waits for its head.
    """
    host, _ = split_address(cluster.gcs)
    comes_back = {"RAY_REDIS_ADDRESS", f"RAY_{_HEAD_LIMIT}"} & set(environment or {})
    return [
        *(*_ray(cluster), "start", "--head", "--block", "--disable-usage-stats", "--include-dashboard=true"),
        *(f"--node-ip-address={host}", f"--port={ports.gcs}", f"--ray-client-server-port={ports.client}"),
        *(f"--dashboard-host={host}", f"--dashboard-port={ports.dashboard}"),
        *([] if comes_back else [f"--system-config={json.dumps({_HEAD_LIMIT: HEAD_SECONDS})}"]),
        *_options(node, cluster),
    ]


def worker_command(node: NodePlan, cluster: ClusterRecord, host: str | None) -> list[str]:
    """The `ray start` command of a further node, on this or another machine; if `host` is None, Ray chooses it."""
    where = [f"--node-ip-address={host}"] if host else []
    return [*_ray(cluster), "start", "--block", f"--address={cluster.gcs}", *where, *_options(node, cluster)]


def _ray(cluster: ClusterRecord) -> tuple[str, ...]:
    return _RAY_ON_LOOPBACK if cluster.on_loopback else _RAY


def _options(node: NodePlan, cluster: ClusterRecord) -> list[str]:
    """Options of all nodes. Port 0 lets the system choose: two nodes of one machine cannot both use Ray's defaults."""
    return [
        *([] if node.cpus is None else [f"--num-cpus={node.cpus}"]),
        *([] if node.gpus is None else [f"--num-gpus={len(node.gpus)}"]),
        *("--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"),
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        # Ray makes its own folder world-readable; its parent folder is private.
        f"--temp-dir={cluster.temp_dir}/ray",
        f"--labels={NAME_LABEL}={node.name},{START_LABEL}={cluster.id}",
    ]


def node_environment(
    base: Mapping[str, str], node: NodePlan, cluster: ClusterRecord, *, metrics: bool
) -> dict[str, str]:
    """The environment of a node and of all processes on it.

    Args:
        base: the initial environment. A token or an address of another cluster in it is removed.
        metrics: export metrics for Prometheus, on ports without a token.
    """
    kept = {name: value for name, value in base.items() if name not in ("RAY_AUTH_TOKEN", "RAY_ADDRESS")}
    return {
        **kept,
        # Jobs start with `python`, which must be this one even if no virtual environment is active.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{base.get('PATH', os.defpath)}",
        **token_environment(Path(cluster.token_path)),
        **(LOOPBACK_ENVIRONMENT if cluster.on_loopback else {}),
        CLUSTER_ID: cluster.id,
        "RAY_USAGE_STATS_ENABLED": "0",
        # `down` stops at once; Ray would wait half a minute for running work.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        **({} if metrics else NO_METRICS),
        **({"CUDA_VISIBLE_DEVICES": ",".join(node.gpus)} if node.gpus else {}),
    }


# Port -1 disables these servers, which have no other switch; their failed start is only logged.
NO_METRICS = {"RAY_enable_metrics_collection": "0", "AUTOSCALER_METRIC_PORT": "-1", "DASHBOARD_METRIC_PORT": "-1"}


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `HOST:PORT`.

    Raises:
        UsageError: the text has another form.
    """
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError(f"{address!r} is not a head address; write HOST:PORT, such as 10.0.0.1:6379.")
    return host, int(port)


def node_name(hostname: str) -> str:
    """A name for a node of this host that is valid in Ray's labels."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", hostname)[:63].strip("_.-") or "node"
