"""What a rank does once it has joined the others: carry out a job, and report why it failed."""

from __future__ import annotations

import pickle
import socket
import textwrap
import traceback
from datetime import timedelta

import torch
from torch.distributed import distributed_c10d

from shardyard.engine.job import Job
from shardyard.engine.loop import Outcome
from shardyard.engine.run import run_rank
from shardyard.engine.world import Rank
from shardyard.errors import ShardyardError, UnavailableError
from shardyard.launch.ray.places import Seat
from shardyard.launch.run.output import redirect_output
from shardyard.launch.run.recovery import RankError, bug_in_words, is_bug

# Of what others say, the beginning; the log of the rank has all of it.
LONGEST_LINE = 300


def train_job(pickled: bytes, seat: Seat) -> Outcome:
    """Carry out a pickled job as the rank that has the seat; returns how it ended.

    Raises:
        RankError: the rank failed.
    """
    job: Job = pickle.loads(pickled)
    redirect_output(job.folder.logs / f"rank-{seat.rank}.log")
    steps: list[int] = []
    rank = Rank(
        rank=seat.rank, world_size=seat.world_size, local_rank=seat.local_rank, device=torch.device(seat.device)
    )
    try:
        limit_collectives(job.recipe.cluster.network.timeout)
        return run_rank(job, rank, on_step=lambda step, _: steps.append(step))
    except Exception as error:  # noqa: BLE001  a rank reports whatever ended it
        traceback.print_exc()
        raise rank_error(error, stepped=bool(steps)) from None


def rank_error(error: Exception, *, stepped: bool) -> RankError:
    """Memory that ran out, lost peers, broken networks and servers that stumble may pass; what else the platform itself
    explains does not, nor does a bug that is met before anything is trained."""
    text = _one_line(error)
    if not stepped and is_bug(error):
        return RankError(bug_in_words(text, socket.gethostname()), permanent=True)
    return RankError(text, permanent=isinstance(error, ShardyardError) and not isinstance(error, UnavailableError))


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
