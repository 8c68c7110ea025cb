"""What runs in each Ray Train worker: one rank of a job."""

from __future__ import annotations

import os
import pickle
import socket
import sys
import textwrap
import traceback
from datetime import datetime, timedelta
from typing import Any

import torch
from ray import train
from torch.distributed import distributed_c10d

from shardyard.engine.job import Job
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.errors import ShardyardError, UnavailableError
from shardyard.launch.ray.process_group import own_gpu
from shardyard.launch.run.output import redirect_output
from shardyard.launch.run.recovery import RankError, bug_in_words, is_bug

# Of what others say, the beginning; the log of the rank has all of it.
LONGEST_LINE = 300


def train_worker(config: dict[str, Any]) -> None:
    """Carry out `config["job"]`, a pickled job, as the rank that Ray Train gives this worker.

    Raises:
        RankError: the rank failed.
    """
    job: Job = pickle.loads(config["job"])
    context = train.get_context()
    redirect_output(job.folder.path / "logs" / f"rank-{context.get_world_rank()}.log")
    steps: list[int] = []
    try:
        _carry_out(job, context, steps)
    except Exception as error:  # noqa: BLE001  a rank reports whatever ended it
        traceback.print_exc()
        raise _rank_error(error, stepped=bool(steps)) from None


def _carry_out(job: Job, context: Any, steps: list[int]) -> None:
    """Be the rank; `steps` is told of each step that is done."""
    rank = Rank(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=own_gpu() if job.plan.world.gpu else torch.device("cpu"),
    )
    if rank.device.type == "cuda":
        # CUDA has a current device for each thread, and Ray Train trains on one of its own.
        torch.cuda.set_device(rank.device)
    limit_collectives(job.recipe.cluster.network.timeout)
    _note(rank, f"begins on {socket.gethostname()}, pid {os.getpid()}, {rank.device}")
    outcome = run_rank(job, rank, on_step=lambda step, _: steps.append(step))
    _note(rank, outcome)
    if rank.is_first:
        job.folder.update(outcome=outcome)


def _rank_error(error: Exception, *, stepped: bool) -> RankError:
    """Memory that ran out, lost peers, broken networks and servers that stumble may pass; what else the platform itself
    explains does not, nor does a bug that is met before anything is trained."""
    text = _one_line(error)
    if not stepped and is_bug(error):
        return RankError(bug_in_words(text, socket.gethostname()), permanent=True)
    return RankError(text, permanent=isinstance(error, ShardyardError) and not isinstance(error, UnavailableError))


def _note(rank: Rank, what: str) -> None:
    """Say it in the log of the rank, which attempts share."""
    now = datetime.now().astimezone().isoformat(timespec="seconds")
    sys.stdout.write(f"{now} rank {rank.rank} of {rank.world_size}: {what}\n")


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
    # torch lists all its backends on the first line.
    first = textwrap.shorten(text.splitlines()[0], LONGEST_LINE, placeholder=" …") if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
