"""What runs in each Ray Train worker: one rank of a job."""

from __future__ import annotations

import os
import pickle
import traceback
from datetime import timedelta
from typing import Any

import torch
from ray import train
from torch.distributed import distributed_c10d

from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.errors import ShardyardError
from shardyard.launch.output import redirect_output


class RankError(Exception):
    """A failure as it travels from a worker: text only, so that any process can read it.

    Both arguments are kept in `args`, which is what pickling carries.
    """

    def __init__(self, message: str, permanent: bool) -> None:
        super().__init__(message, permanent)
        self.message = message
        self.permanent = permanent


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
    os.environ.update(rank_environment(rank, context.get_local_world_size(), context.get_node_rank()))
    limit_collectives(job.recipe.cluster.network.timeout)
    try:
        outcome = run_rank(job, rank)
    except Exception as error:  # noqa: BLE001  a rank reports whatever ended it
        traceback.print_exc()
        # Memory that ran out, lost peers and broken networks may pass; what the platform itself explains does not.
        raise RankError(_one_line(error), permanent=isinstance(error, ShardyardError)) from None
    if rank.is_first:
        job.folder.update(outcome=outcome)


def rank_environment(rank: Rank, local_world_size: int, node_rank: int) -> dict[str, str]:
    """The variables of torchrun, which DeepSpeed and others read even when torch.distributed is up.

    DeepSpeed computes on the GPU whose index is LOCAL_RANK. With two nodes of Ray on one host, the index among the GPUs
    that a rank sees differs from its number on the host, and the index is what counts.
    """
    return {
        "RANK": str(rank.rank),
        "WORLD_SIZE": str(rank.world_size),
        "LOCAL_RANK": str(rank.local_rank if rank.device.index is None else rank.device.index),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "NODE_RANK": str(node_rank),
        "GROUP_RANK": str(node_rank),
    }


def limit_collectives(seconds: float) -> None:
    """Let collectives fail after so long, also those of groups that DeepSpeed makes later without saying how long."""
    limit = timedelta(seconds=seconds)
    distributed_c10d.default_pg_timeout = limit
    distributed_c10d.default_pg_nccl_timeout = limit
    distributed_c10d._set_pg_timeout(limit)


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, ShardyardError):
        return text
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
