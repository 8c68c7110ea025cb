"""How ranks meet: torch.distributed among the workers of Ray Train.

Ray's TorchConfig does the same, but whoever imports it imports torch: the driver of each run, where nothing is computed
and where that would take longer than all the rest.
"""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import GetTimeoutError
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig

if TYPE_CHECKING:
    import torch

# What a rank gets to leave its group before it is ended.
PARTING_SECONDS = 10.0


@dataclass
class ProcessGroup(BackendConfig):  # type: ignore[misc]
    """backend: nccl or gloo. timeout: how long ranks wait for one another at the start, in seconds."""

    backend: str
    timeout: float

    @property
    def backend_cls(self) -> type[Backend]:
        """What Ray Train calls around a group of workers."""
        return _Ranks

    def to_dict(self) -> dict[str, Any]:
        """For Ray's dashboard."""
        return {"backend": self.backend, "timeout": self.timeout}


class _Ranks(Backend):  # type: ignore[misc]
    # NCCL reaches neighbours on a node directly only where a process sees their GPUs too.
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        address, port = worker_group.execute_single(0, get_address_and_port)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, join_process_group, address, port, backend_config.backend, backend_config.timeout
                )
                for rank in range(len(worker_group))
            ]
        )

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        with contextlib.suppress(GetTimeoutError):
            ray.get(worker_group.execute_async(leave_process_group), timeout=PARTING_SECONDS)


def join_process_group(address: str, port: int, backend: str, timeout: float) -> None:
    """Runs in the process of a rank: it waits for the others at rank 0's `address` and `port`."""
    import torch
    from ray import train
    from torch import distributed

    context = train.get_context()
    index = own_gpu().index if backend == "nccl" else None
    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    os.environ.update(
        rank_environment(
            rank=context.get_world_rank(),
            world_size=context.get_world_size(),
            local_rank=context.get_local_rank() if index is None else index,
            local_world_size=context.get_local_world_size(),
            node_rank=context.get_node_rank(),
        )
    )
    if index is not None:
        torch.cuda.set_device(index)
    rank, world_size, limit = context.get_world_rank(), context.get_world_size(), timedelta(seconds=timeout)
    distributed.init_process_group(
        backend,
        store=_store(address, port, rank, world_size, limit),
        rank=rank,
        world_size=world_size,
        timeout=limit,
    )


def _store(address: str, port: int, rank: int, world_size: int, limit: timedelta) -> Any:
    """Where ranks find each other. torch's own listens on all interfaces; this one where the others look for it."""
    from torch import distributed

    listening = None
    if rank == 0:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as server, contextlib.suppress(OSError):
            # Behind a translated address no interface has it; torch then listens on all of them.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen(world_size + 16)
            listening = server.detach()
    return distributed.TCPStore(  # type: ignore[attr-defined]
        address, port, world_size, rank == 0, limit, wait_for_workers=False, master_listen_fd=listening
    )


def own_gpu() -> torch.device:
    """The GPU of this rank: Ray shows a worker those of all ranks on its node and says which of them is its own."""
    # `from ray import train` alone does not have it, and it imports torch.
    from ray.train.torch import get_device

    return get_device()  # type: ignore[no-any-return]


def leave_process_group() -> None:
    """Runs in the process of a rank: it leaves the group."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def rank_environment(
    *, rank: int, world_size: int, local_rank: int, local_world_size: int, node_rank: int
) -> dict[str, str]:
    """The variables of torchrun, which DeepSpeed and others read even when torch.distributed is up.

    DeepSpeed computes on the GPU whose index is LOCAL_RANK. With two nodes of Ray on one host, the index among the GPUs
    that a rank sees differs from its number on the host, and the index is what counts: it is `local_rank` on GPUs.
    """
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "NODE_RANK": str(node_rank),
        "GROUP_RANK": str(node_rank),
    }
