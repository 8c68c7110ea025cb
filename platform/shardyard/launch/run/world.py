"""The world of a run: its ranks, devices and memory."""

from __future__ import annotations

import os

from shardyard.errors import HardwareError
from shardyard.hardware import bf16_units, computes_on_cpu, has_gpu, read_cpuinfo
from shardyard.planning.plan import World
from shardyard.recipe.precision import Bf16
from shardyard.recipe.schema import Cluster
from shardyard.units import parse_bytes

# The first compute capability with bf16 units: Ampere.
_BF16_CAPABILITY = (8, 0)


def world_of(
    settings: Cluster, *, local: bool = False, cluster_gpus: int | None = None, elsewhere: bool = False
) -> World:
    """The world of a launch. With DS_ACCELERATOR=cpu ranks always compute on the CPU.

    Args:
        local: one rank in this process, whatever `cluster.workers` says.
        cluster_gpus: GPUs of the cluster; None for this machine or if unknown.
        elsewhere: the job runs under another scheduler, on machines that cannot be queried from here.

    Raises:
        HardwareError: a local GPU is required, but there is none.
    """
    gpu = _on_gpus(settings, cluster_gpus)
    if local and gpu and not _torch_has_gpu():
        raise HardwareError(
            f"cluster.gpus_per_worker is {settings.gpus_per_worker or 1:g}, but this machine has no GPU that torch can "
            "use; set it to 0."
        )
    size = 1 if local else settings.workers
    here = local or not (elsewhere or cluster_address(settings))
    bf16 = bf16_here(gpu=gpu) if here else Bf16()
    memory = _device_bytes(settings, gpu=gpu, workers=size)
    return World(size=size, gpu=gpu, device_bytes=memory, bf16=bf16, host_bytes=_host_bytes() if here else None)


def bf16_here(*, gpu: bool) -> Bf16:
    """Whether the devices of this machine have bf16 units."""
    if not gpu:
        units = bf16_units(read_cpuinfo())
        if units is None:
            return Bf16(False, "whether this CPU has bf16 units is not known")
        return Bf16(bool(units), f"this CPU has bf16 units ({units})" if units else "this CPU has no bf16 units")
    if not _torch_has_gpu():
        return Bf16()
    import torch

    capability = min(torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count()))
    return bf16_of_gpus("this GPU" if torch.cuda.device_count() == 1 else "a GPU here", capability)


def bf16_of_gpus(which: str, capability: tuple[int, int]) -> Bf16:
    """Whether GPUs have bf16 units, by their lowest compute capability."""
    units = capability >= _BF16_CAPABILITY
    return Bf16(
        units, f"{which} has {'' if units else 'no '}bf16 units (compute capability {capability[0]}.{capability[1]})"
    )


def cluster_address(settings: Cluster) -> str | None:
    """Address of the Ray cluster; None if one is started for the run. RAY_ADDRESS takes precedence, as in Ray."""
    return os.environ.get("RAY_ADDRESS") or settings.address


def _on_gpus(settings: Cluster, cluster_gpus: int | None) -> bool:
    if computes_on_cpu():
        return False
    if settings.gpus_per_worker is not None:
        return settings.gpus_per_worker > 0
    return _torch_has_gpu() if cluster_gpus is None else cluster_gpus > 0


def _device_bytes(settings: Cluster, *, gpu: bool, workers: int) -> int | None:
    if settings.memory_per_worker is not None:
        return parse_bytes(settings.memory_per_worker)
    if gpu:
        return _gpu_bytes(settings.gpus_per_worker or 1.0)
    if cluster_address(settings) is not None:
        return None
    # CPU ranks of one machine share its memory.
    return _host_bytes() // workers


def _host_bytes() -> int:
    """Memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpu_bytes(share: float) -> int | None:
    """Memory of a worker's share of a GPU like the one here; None without a GPU."""
    if not _torch_has_gpu():
        return None
    import torch

    return int(torch.cuda.get_device_properties(0).total_memory * share)


def _torch_has_gpu() -> bool:
    if not has_gpu():
        return False
    # Imported late: importing torch takes longer than all other work of a driver.
    import torch

    return torch.cuda.is_available()
