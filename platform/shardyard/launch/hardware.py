"""The world that a recipe will run in: how many ranks, on what, with how much memory."""

from __future__ import annotations

import os

import torch

from shardyard.errors import HardwareError
from shardyard.recipe.plan import World
from shardyard.recipe.schema import Cluster
from shardyard.units import parse_bytes


def world_of(settings: Cluster, *, local: bool = False, cluster_gpus: int | None = None) -> World:
    """The world of a launch.

    Args:
        local: one rank in this process, whatever `cluster.workers` says.
        cluster_gpus: GPUs of the cluster that the launch goes to; None for this machine, or one that is not asked.

    Raises:
        HardwareError: a GPU in this process is asked for and there is none.
    """
    found = torch.cuda.is_available() if cluster_gpus is None else cluster_gpus > 0
    gpu = found if settings.gpus_per_worker is None else settings.gpus_per_worker == 1
    if local and gpu and not torch.cuda.is_available():
        raise HardwareError(
            "cluster.gpus_per_worker is 1, but this machine has no GPU that torch can use; set it to 0."
        )
    size = 1 if local else settings.workers
    return World(size=size, gpu=gpu, device_bytes=_device_bytes(settings, gpu=gpu, workers=size))


def cluster_address(settings: Cluster) -> str | None:
    """Address of the Ray cluster to use; None for one that is started for the run. RAY_ADDRESS wins, as Ray has it."""
    return os.environ.get("RAY_ADDRESS") or settings.address


def _device_bytes(settings: Cluster, *, gpu: bool, workers: int) -> int | None:
    if settings.memory_per_worker is not None:
        return parse_bytes(settings.memory_per_worker)
    if gpu:
        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    if cluster_address(settings) is not None:
        return None
    # CPU ranks of one machine share its memory.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // workers
