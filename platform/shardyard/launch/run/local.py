"""Training in this process, without Ray, for debugging and profiling."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import distributed

from shardyard.engine.loop import Outcome
from shardyard.engine.run import Job, run_rank
from shardyard.engine.watch.trace import answer_questions
from shardyard.engine.world import Rank
from shardyard.errors import RollbackError
from shardyard.launch.run.interfaces import loopback_interface
from shardyard.tracking.watch.beat import BEAT
from shardyard.tracking.watch.beside import Watch
from shardyard.tracking.watch.judge import Limits


def run_local(
    job: Job,
    *,
    keep_group: bool = False,
    rolled_back: Callable[[], object] = lambda: None,
    tells: int | None = None,
) -> Outcome:
    """Run a job as the only rank, again after each rollback. Other errors are raised unchanged, with tracebacks.

    Args:
        rolled_back: called after each rollback.
        keep_group: leave the process group for the next job of this process, because DeepSpeed caches its groups. All
            jobs of the process must then set it.
        tells: the process belongs to the run, and one beside it watches it (`tracking/watch/beside.py`), ends it if it
            hangs, and says so on this descriptor. None: nobody does.
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
        with contextlib.nullcontext() if tells is None else _watched(job, tells):
            return _until_done(job, device, rolled_back)
    finally:
        if not keep_group:
            distributed.destroy_process_group()


def _until_done(job: Job, device: torch.device, rolled_back: Callable[[], object]) -> Outcome:
    while (outcome := _run(job, Rank(rank=0, world_size=1, local_rank=0, device=device))) is None:
        # The engine of before has cycles, and the next one needs its memory.
        gc.collect()
        rolled_back()
    return outcome


@contextlib.contextmanager
def _watched(job: Job, tells: int) -> Iterator[None]:
    """A process beside this one watches it."""
    settings = job.recipe.cluster.watchdog
    if settings.hangs == "off":
        yield
        return
    BEAT.clear()
    BEAT.train_here()
    answer_questions()
    kept = "cluster.watchdog.hangs is report" if settings.hangs == "report" else _person()
    longest = job.recipe.cluster.network.timeout
    limits = Limits(settings.hang_seconds, settings.idle_seconds, settings.data_seconds, longest)
    wanted = Watch(str(job.folder.path), os.getpid(), socket.gethostname(), BEAT.open(), limits, not kept, kept)
    with subprocess.Popen(
        [sys.executable, "-m", "shardyard.tracking.watch.beside"],
        stdin=subprocess.PIPE,
        stdout=tells,
        stderr=tells,
        text=True,
        # Ctrl-C in a terminal is for the run.
        start_new_session=True,
    ) as watcher:
        assert watcher.stdin is not None
        watcher.stdin.write(f"{wanted.to_json()}\n")
        watcher.stdin.flush()
        try:
            yield
        finally:
            watcher.kill()


def _person() -> str:
    """Why a rank that stands still may not hang: somebody may be looking at it; "" if nobody is."""
    if sys.gettrace() is not None or "debugpy" in sys.modules:
        return "a debugger is attached"
    if sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty():
        return "a person sits at its terminal, who may have stopped it"
    return ""


def _run(job: Job, rank: Rank) -> Outcome | None:
    """The outcome, or None after a rollback."""
    try:
        return run_rank(job, rank)
    except RollbackError:
        return None
