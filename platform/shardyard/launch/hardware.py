"""The world that a recipe will run in: how many ranks, on what, with how much memory."""

from __future__ import annotations

import os

import torch

from shardyard.recipe.plan import World
from shardyard.recipe.schema import Cluster
from shardyard.units import parse_bytes


def local_world(settings: Cluster, *, local: bool = False) -> World:
    """The world of a launch on this machine, or on a cluster of machines like it.

    Args:
        local: one rank in this process, whatever `cluster.workers` says.
    """
    gpu = settings.gpus_per_worker != 0 and torch.cuda.is_available()
    if settings.gpus_per_worker == 1 and settings.address is None and not local:
        # Asked for explicitly: the cluster will refuse it if there is none.
        gpu = True
    size = 1 if local else settings.workers
    return World(size=size, gpu=gpu, device_bytes=_device_bytes(settings, gpu=gpu, workers=size))


def _device_bytes(settings: Cluster, *, gpu: bool, workers: int) -> int | None:
    if settings.memory_per_worker is not None:
        return parse_bytes(settings.memory_per_worker)
    if gpu:
        return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    if settings.address is not None or os.environ.get("RAY_ADDRESS"):
        return None
    # CPU ranks of one machine share its memory.
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // workers
