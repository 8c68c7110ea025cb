"""What runs in each Ray Train worker: one rank of a job."""

from __future__ import annotations

import os
import traceback
from typing import Any

from ray import train

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
    """Carry out `config["job"]` as the rank that Ray Train gives this worker.

    Raises:
        RankError: the rank failed.
    """
    job: Job = config["job"]
    context = train.get_context()
    redirect_output(job.folder.path / "logs" / f"rank-{context.get_world_rank()}.log")
    rank = Rank(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=train.torch.get_device(),
    )
    # DeepSpeed reads these even when torch.distributed is up; Ray shows each worker its own GPUs only.
    os.environ.update(RANK=str(rank.rank), LOCAL_RANK=str(rank.device.index or 0), WORLD_SIZE=str(rank.world_size))
    try:
        outcome = run_rank(job, rank)
    except Exception as error:  # noqa: BLE001  a rank reports whatever ended it
        traceback.print_exc()
        # Memory that ran out, lost peers and broken networks may pass; what the platform itself explains does not.
        raise RankError(_one_line(error), permanent=isinstance(error, ShardyardError)) from None
    if rank.is_first:
        job.folder.update(outcome=outcome)


def _one_line(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, ShardyardError):
        return text
    first = text.splitlines()[0] if text else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__
