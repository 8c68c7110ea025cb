"""What runs in each Ray Train worker: one rank of a job."""

from __future__ import annotations

import pickle
import traceback
from datetime import timedelta
from typing import Any

import torch
from ray import train
from torch.distributed import distributed_c10d

from shardyard.engine.job import Job
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.errors import ShardyardError
from shardyard.launch.output import redirect_output
from shardyard.launch.recovery import RankError


def train_worker(config: dict[str, Any]) -> None:
    """Carry out `config["job"]`, a pickled job, as the rank that Ray Train gives this worker.

    Raises:
        RankError: the rank failed.
    """
    job: Job = pickle.loads(config["job"])
    context = train.get_context()
    redirect_output(job.folder.path / "logs" / f"rank-{context.get_world_rank()}.log")
    rank = Rank(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        # Ray shows a worker the GPUs of all ranks on its node and says which of them is its own.
        device=train.torch.get_device() if job.plan.world.gpu else torch.device("cpu"),
    )
    if rank.device.type == "cuda":
        # CUDA has a current device for each thread, and Ray Train trains on one of its own.
        torch.cuda.set_device(rank.device)
    limit_collectives(job.recipe.cluster.network.timeout)
    try:
        outcome = run_rank(job, rank)
    except Exception as error:  # noqa: BLE001  a rank reports whatever ended it
        traceback.print_exc()
        # Memory that ran out, lost peers and broken networks may pass; what the platform itself explains does not.
        raise RankError(_one_line(error), permanent=isinstance(error, ShardyardError)) from None
    if rank.is_first:
        job.folder.update(outcome=outcome)


def limit_collectives(seconds: float) -> None:
    """Let collectives fail after so long, also those of groups that DeepSpeed makes later without saying how long."""
    limit = timedelta(seconds=seconds)
    distributed_c10d.default_pg_timeout = limit
    distributed_c10d.default_pg_nccl_timeout = limit  # type: ignore[attr-defined]
    distributed_c10d._set_pg_timeout(limit)


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, ShardyardError):
        return text
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
