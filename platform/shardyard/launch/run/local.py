"""Training in this process, without Ray, for debugging and profiling."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable

import torch
from torch import distributed

from shardyard.engine.loop import Outcome
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import RollbackError
from shardyard.launch.run.interfaces import loopback_interface


def run_local(job: Job, *, keep_group: bool = False, rolled_back: Callable[[], object] = lambda: None) -> Outcome:
    """Run a job as the only rank, again after each rollback. Other errors are raised unchanged, with tracebacks.

    Args:
        rolled_back: called after each rollback.
        keep_group: leave the process group for the next job of this process, because DeepSpeed caches its groups. All
            jobs of the process must then set it.
    """
    device = torch.device("cuda", 0) if job.plan.world.gpu else torch.device("cpu")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback_interface())
    # DeepSpeed reads the rank from the environment even when torch.distributed is up.
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
    if not (keep_group and distributed.is_initialized()):
        # A single rank needs only an in-memory store.
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group("nccl" if job.plan.world.gpu else "gloo", store=store, rank=0, world_size=1)
    try:
        while (outcome := _run(job, Rank(rank=0, world_size=1, local_rank=0, device=device))) is None:
            # The engine of before has cycles, and the next one needs its memory.
            gc.collect()
            rolled_back()
        return outcome
    finally:
        if not keep_group:
            distributed.destroy_process_group()


def _run(job: Job, rank: Rank) -> Outcome | None:
    """The outcome, or None after a rollback."""
    try:
        return run_rank(job, rank)
    except RollbackError:
        return None
