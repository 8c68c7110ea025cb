"""Real gloo ranks in separate processes."""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from shardyard.engine.mesh import Axis, make_mesh
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.recipe.mesh import data_mesh
from support.forks import fork_context


def sampled_stages(position: int) -> tuple[int, ...]:
    """ZeRO stages of the case at a position in a matrix: 0, 3, and at every second position also 1 or 2 in turn.

    Stages 1 and 2 cut gradients and optimizer states into flat pieces, whatever the case computes; only stage 3 meets
    its modules. `make stages` tries all of each.
    """
    if os.environ.get("SHARDYARD_ALL_STAGES"):
        return (0, 1, 2, 3)
    return (0, 3) if position % 2 else (0, 1 + position // 2 % 2, 3)


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(rank, *arguments)` on each of `world_size` fresh processes; their results in rank order.

    The function must be importable by name. An exception of any rank fails the test with that rank's traceback.
    Processes are forked from one that has imported the engine, seconds of work for each, and done nothing else.
    """
    with tempfile.TemporaryDirectory() as scratch:
        context = fork_context()
        environment = dict(os.environ)
        processes = [
            context.Process(target=_rank, args=(rank, world_size, scratch, environment, function, arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        results = [_result(Path(scratch), rank) for rank in range(world_size)]
    failures = [f"rank {rank}:\n{text}" for rank, (good, text) in enumerate(results) if not good]
    assert not failures, "\n".join(failures)
    return [value for _, value in results]


def run_jobs(jobs: Sequence[Job]) -> None:
    """Train all jobs, those of one world size after each other on the same processes."""
    for size in sorted({job.plan.world.size for job in jobs}):
        run_ranks(size, _in_order, [job for job in jobs if job.plan.world.size == size])


def _in_order(rank: Rank, jobs: list[Job]) -> None:
    for job in jobs:
        run_rank(job, rank)


def data_axis(rank: Rank) -> Axis:
    """The axis along which all ranks read different rows."""
    return make_mesh(data_mesh(rank.world_size), rank).data


def _result(scratch: Path, rank: int) -> tuple[bool, Any]:
    path = scratch / f"result-{rank}"
    if not path.exists():
        return False, "the process ended without a result"
    value: tuple[bool, Any] = pickle.loads(path.read_bytes())
    return value


def _rank(
    rank: int,
    world_size: int,
    scratch: str,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    # ZeRO-3 collects garbage at each start: half a second each time among all that has been imported.
    gc.freeze()
    os.environ.clear()
    os.environ.update(
        environment,
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="0",
    )
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    store = distributed.FileStore(f"{scratch}/store", world_size)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=world_size)
    try:
        here = Rank(rank=rank, world_size=world_size, local_rank=rank, device=torch.device("cpu"))
        result: tuple[bool, Any] = (True, function(here, *arguments))
    except BaseException:  # noqa: BLE001  whatever it is, the test shows it
        result = (False, traceback.format_exc())
    temporary = Path(scratch) / f".result-{rank}"
    temporary.write_bytes(pickle.dumps(result))
    temporary.rename(Path(scratch) / f"result-{rank}")
    # A rank that failed must not wait for the others in the destructor of its group.
    os._exit(0 if result[0] else 1)
