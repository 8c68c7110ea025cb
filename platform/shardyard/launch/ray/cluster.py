"""Ray clusters: the one named by a recipe or RAY_ADDRESS, or a local one started for this run."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import psutil
import ray

from shardyard.errors import HardwareError, ShardyardError
from shardyard.launch.local_cluster.token import ensure_ray_token
from shardyard.launch.ray import quirks, sessions
from shardyard.launch.ray.local_ray import INIT_OPTIONS, on_loopback
from shardyard.launch.run.world import cluster_address
from shardyard.planning.placement import Amount, Demand, Node, ask, judge, within
from shardyard.recipe.schema import Cluster

KNOCK_TIMEOUT_SECONDS = 5.0
# Time for killed daemons to end, before their folder is removed.
END_SECONDS = 5.0
# Ray's autoscaler and KubeRay label their nodes with the node group.
_NODE_GROUP = "ray.io/node-group"


class RayCluster:
    """A connected Ray.

    name: its name in messages.
    named: whether the user named it; otherwise it was started for this run.
    """

    def __init__(self, address: str | None) -> None:
        self.named = address is not None
        self.name = f"the Ray cluster at {address}" if address else "this machine"

    @property
    def autoscales(self) -> bool:
        """Whether nodes may be added automatically."""
        return any(_NODE_GROUP in (node.get("Labels") or {}) for node in ray.nodes())

    def nodes(self) -> list[Node]:
        """The living nodes, with total and free resources.

        Raises:
            ShardyardError: the only node of a local Ray is dead, and no other will come.
        """
        free = quirks.free_resources()
        found = [
            Node(node["NodeID"], _amount(node["Resources"]), _amount(free.get(node["NodeID"], {})))
            for node in ray.nodes()
            if node["Alive"]
        ]
        if not found and not self.named:
            raise ShardyardError(
                "the Ray of this run has died (its raylet, on this machine: `dmesg -T` tells whether memory ran out). "
                "`shardyard resume RUN` starts another and continues from the newest checkpoint."
            )
        return found

    @property
    def gpus(self) -> float:
        """GPUs of all nodes."""
        return float(ray.cluster_resources().get("GPU", 0.0))

    def refuse_what_never_fits(self, demand: Demand) -> None:
        """Check that the workers could fit on the cluster, including nodes added by an autoscaler.

        Raises:
            HardwareError: they could not.
        """
        verdict = judge(self.requested(demand), self.nodes())
        if not verdict.ever and not self.autoscales:
            raise HardwareError(
                f"{self.name} cannot hold this run: it {verdict.sentence}. Lower cluster.workers or what each worker "
                "takes, which `shardyard plan RECIPE` shows, or add nodes."
            )

    def requested(self, demand: Demand) -> Demand:
        """The request for this cluster: no more cores than it has unless the recipe asks for them, and memory only on
        shared clusters."""
        demand = demand if self.named else replace(demand, bundle=replace(demand.bundle, memory=0.0))
        return demand if demand.cpus_given else within(demand, self.nodes())


@contextmanager
def ray_cluster(settings: Cluster, *, gpu: bool | None = None) -> Iterator[RayCluster]:
    """A connected Ray; disconnected at the end, and stopped if it is local.

    Args:
        gpu: whether workers compute on GPUs; if given, workers that could never fit are refused.

    Raises:
        ShardyardError: the cluster cannot be reached, or the workers could never fit.
    """
    _connect(settings)
    failed = True
    try:
        cluster = RayCluster(cluster_address(settings))
        if gpu is not None:
            cluster.refuse_what_never_fits(ask(settings, gpu=gpu, workers=settings.min_workers))
        yield cluster
        failed = False
    finally:
        _shut_down(keep_logs=failed)


def cluster_gpus(settings: Cluster) -> int | None:
    """GPUs of the cluster named by a recipe or RAY_ADDRESS, which stays connected; None if none is named.

    Raises:
        ShardyardError: the cluster cannot be reached.
    """
    if cluster_address(settings) is None:
        return None
    _connect(settings)
    return int(RayCluster(None).gpus)


def _connect(settings: Cluster) -> None:
    if ray.is_initialized():
        return
    address = cluster_address(settings)
    if address is not None:
        _knock(address)
    # On a laptop, workers may need more cores than exist.
    cores = None if address else max(os.cpu_count() or 1, settings.workers * (settings.cpus_per_worker or 1))
    options = {"log_to_driver": False, "configure_logging": False}
    if not address:
        ensure_ray_token()
    try:
        with quirks.signals_left_alone(), quirks.daemons_apart():
            if address:
                ray.init(address=address, **options)
            else:
                with on_loopback():
                    ray.init(address="local", num_cpus=cores, **INIT_OPTIONS, **options)
                if (folder := quirks.session_folder()) is not None:
                    sessions.mark(folder)
                    sessions.remove_dead(folder.parent)
    except Exception as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise ShardyardError(
            f"{where} cannot be used: {_first_line(error)}. Check that it runs, that its version is {ray.__version__}, "
            "and that RAY_AUTH_MODE and RAY_AUTH_TOKEN_PATH are set if it has a token (`shardyard cluster up` prints "
            "them); without RAY_ADDRESS and cluster.address a local one is started."
        ) from error


def _shut_down(*, keep_logs: bool) -> None:
    """Disconnect, and completely stop a cluster started by this process: its ranks have ended, and its daemons ignore
    SIGTERM. Its folder is removed, unless its logs may explain a failure; the next local Ray removes it then."""
    started, folder = quirks.processes_started_here(), quirks.session_folder()
    ray.shutdown()
    for process in started:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if folder is not None and not keep_logs:
        psutil.wait_procs(started, timeout=END_SECONDS)
        sessions.remove(folder)


def _knock(address: str) -> None:
    """Check within seconds that the address answers; Ray itself would retry for minutes.

    Raises:
        ShardyardError: it does not.
    """
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=KNOCK_TIMEOUT_SECONDS).close()
    except OSError as error:
        raise ShardyardError(
            f"the Ray cluster at {address} cannot be used: {error.strerror or error}. Check the address that "
            "`ray start --head` printed; without RAY_ADDRESS and cluster.address a local Ray is started."
        ) from error


def _amount(resources: Mapping[str, float]) -> Amount:
    return Amount(resources.get("CPU", 0.0), resources.get("GPU", 0.0), resources.get("memory", 0.0))


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
