"""The work of a rank once it has joined the others: run a job, and report why it failed."""

from __future__ import annotations

import pickle
import socket
import textwrap
import traceback

import torch

from shardyard.engine.job import Job
from shardyard.engine.loop import Outcome
from shardyard.engine.run import run_rank
from shardyard.engine.watch.collectives import limit_collectives, record_collectives
from shardyard.engine.watch.trace import answer_questions
from shardyard.engine.world import Rank
from shardyard.errors import ReplicasError, RollbackError, ShardyardError, UnavailableError
from shardyard.launch.ray.places import Seat
from shardyard.launch.run.output import redirect_output
from shardyard.launch.run.recovery import RankError, bug_in_words, is_bug

# Error messages of libraries are truncated; the log of the rank has all of them.
LONGEST_LINE = 300


def train_job(pickled: bytes, seat: Seat) -> Outcome:
    """Run a pickled job as the rank with this seat; returns its outcome.

    Raises:
        RankError: the rank failed.
    """
    job: Job = pickle.loads(pickled)
    redirect_output(job.folder.logs / f"rank-{seat.rank}.log")
    steps: list[int] = []
    rank = Rank(
        rank=seat.rank, world_size=seat.world_size, local_rank=seat.local_rank, device=torch.device(seat.device)
    )
    record_collectives()
    answer_questions()
    try:
        limit_collectives(job.recipe.cluster.network.timeout)
        return run_rank(job, rank, on_step=lambda step, _: steps.append(step))
    except Exception as error:  # noqa: BLE001  a rank reports whatever ended it
        traceback.print_exc()
        raise rank_error(error, stepped=bool(steps)) from None


def rank_error(error: Exception, *, stepped: bool) -> RankError:
    """Convert an error to a RankError. Out of memory, lost peers, network failures, server errors and memory that flips
    bits may be temporary; other errors of the platform itself are permanent, as are bugs before the first step."""
    text = _one_line(error)
    if not stepped and is_bug(error):
        return RankError(bug_in_words(text, socket.gethostname()), permanent=True)
    passing = isinstance(error, UnavailableError | ReplicasError | RollbackError) or not isinstance(
        error, ShardyardError
    )
    return RankError(text, permanent=not passing, rollback=isinstance(error, RollbackError))


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, ShardyardError):
        return text
    # torch lists all its backends on the first line.
    first = textwrap.shorten(text.splitlines()[0], LONGEST_LINE, placeholder=" …") if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
