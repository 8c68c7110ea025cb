"""Ray clusters: the one a recipe or RAY_ADDRESS names, or a local one started for this run."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from shardyard.errors import HardwareError, ShardyardError
from shardyard.launch.hardware import cluster_address
from shardyard.recipe.schema import Cluster

KNOCK_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True)
class Resources:
    """What a cluster has in total."""

    cpus: int
    gpus: int
    nodes: int


@contextmanager
def ray_cluster(settings: Cluster, *, gpu: bool) -> Iterator[Resources]:
    """A connected Ray; it is left, and a local one stopped, at the end.

    Raises:
        ShardyardError: the cluster cannot be reached, or is too small.
    """
    _connect(settings)
    try:
        resources = _resources()
        _check(resources, settings, gpu=gpu)
        yield resources
    finally:
        ray.shutdown()


def cluster_gpus(settings: Cluster) -> int | None:
    """GPUs of the cluster that a recipe or RAY_ADDRESS names, which stays connected; None where none is named.

    Raises:
        ShardyardError: the cluster cannot be reached.
    """
    if cluster_address(settings) is None:
        return None
    _connect(settings)
    return _resources().gpus


def _connect(settings: Cluster) -> None:
    if ray.is_initialized():
        return
    address = cluster_address(settings)
    if address is not None:
        _knock(address)
    # A worker that a person started on a laptop may need more cores than the laptop has.
    cores = None if address else max(os.cpu_count() or 1, settings.workers * settings.cpus_per_worker)
    try:
        ray.init(
            address=address or "local",
            num_cpus=cores,
            include_dashboard=False if not address else None,
            log_to_driver=False,
            configure_logging=False,
        )
    except Exception as error:
        where = f"the Ray cluster at {address}" if address else "a local Ray"
        raise ShardyardError(
            f"{where} cannot be used: {_first_line(error)}. Check that it runs and that its version is "
            f"{ray.__version__}; without RAY_ADDRESS and cluster.address a local one is started."
        ) from error


def _knock(address: str) -> None:
    """See within seconds whether anyone listens; Ray itself would try for minutes.

    Raises:
        ShardyardError: nobody does.
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


def _resources() -> Resources:
    total = ray.cluster_resources()
    alive = sum(1 for node in ray.nodes() if node["Alive"])
    return Resources(cpus=int(total.get("CPU", 0)), gpus=int(total.get("GPU", 0)), nodes=alive)


def _check(resources: Resources, settings: Cluster, *, gpu: bool) -> None:
    cpus = settings.workers * settings.cpus_per_worker
    if cpus > resources.cpus:
        raise HardwareError(
            f"cluster.workers × cluster.cpus_per_worker is {cpus} CPU cores, the cluster has {resources.cpus} on "
            f"{resources.nodes} node(s); lower one of them."
        )
    if gpu and settings.workers > resources.gpus:
        raise HardwareError(
            f"cluster.workers is {settings.workers} with a GPU each, the cluster has {resources.gpus}; "
            "lower it, or set cluster.gpus_per_worker to 0."
        )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
