"""torch.distributed among the workers of a group. torch is imported only in their processes."""

from __future__ import annotations

import contextlib
import os
import socket
from datetime import timedelta
from typing import Any

from shardyard.launch.ray.places import Seat

# The listen backlog, in addition to one connection per rank.
_SPARE_BACKLOG = 16


def open_port(address: str, world_size: int) -> tuple[socket.socket | None, int]:
    """A port of this host for joining rank 0, and its socket, which listens only at this address.

    Behind NAT no interface has the address: the socket is then None, and torch listens on all interfaces.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.bind((address, 0))
    except OSError:
        server.bind(("", 0))
        port = server.getsockname()[1]
        server.close()
        return None, port
    server.listen(world_size + _SPARE_BACKLOG)
    return server, server.getsockname()[1]


def join_process_group(
    seat: Seat, address: str, port: int, *, backend: str, timeout: float, listening: socket.socket | None = None
) -> None:
    """Join the other ranks at rank 0's `address` and `port`; runs in the process of a rank.

    Args:
        backend: nccl or gloo.
        timeout: seconds that ranks wait for each other.
        listening: the listening socket of rank 0, if it has one.
    """
    import torch
    from torch import distributed

    os.environ.update(MASTER_ADDR=address, MASTER_PORT=str(port))
    os.environ.update(rank_environment(seat))
    if seat.gpu is not None:
        torch.cuda.set_device(seat.gpu)
    limit = timedelta(seconds=timeout)
    store: Any = distributed.TCPStore(  # type: ignore[attr-defined]
        address,
        port,
        seat.world_size,
        seat.rank == 0,
        limit,
        wait_for_workers=False,
        master_listen_fd=listening.detach() if listening is not None else None,
    )
    distributed.init_process_group(backend, store=store, rank=seat.rank, world_size=seat.world_size, timeout=limit)


def leave_process_group() -> None:
    """Leave the group; runs in the process of a rank."""
    from torch import distributed

    if distributed.is_initialized():
        with contextlib.suppress(RuntimeError):
            distributed.destroy_process_group()


def rank_environment(seat: Seat) -> dict[str, str]:
    """The variables of torchrun, which DeepSpeed and other libraries read even when torch.distributed is initialised.

    DeepSpeed uses the GPU whose index is LOCAL_RANK. With two Ray nodes on one host, a rank's index among its visible
    GPUs differs from its local rank on the host; LOCAL_RANK must be the index.
    """
    return {
        "RANK": str(seat.rank),
        "WORLD_SIZE": str(seat.world_size),
        "LOCAL_RANK": str(seat.local_rank if seat.gpu is None else seat.gpu),
        "LOCAL_WORLD_SIZE": str(seat.local_world_size),
        "NODE_RANK": str(seat.node_rank),
        "GROUP_RANK": str(seat.node_rank),
    }
