"""Faults while a checkpoint is written beside training: nothing is half there, nothing hangs, and no bit is lost."""

from __future__ import annotations

import errno
import math
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import pytest

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.checkpoint import Checkpointer, TrainerState
from shardyard.engine.checkpoint.output import Output
from shardyard.engine.run import Job, run_rank
from shardyard.engine.world import Rank
from shardyard.tracking.run.events import CheckpointFailed, CheckpointSaved, read_events
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus
from support.waiting import until

pytestmark = pytest.mark.slow
STEPS = 6


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Job]:
    """A new job of two ranks that saves every other step beside training."""
    folder = tmp_path_factory.mktemp("background")
    recipe = tiny_recipe(
        write_corpus(folder),
        train={"steps": STEPS},
        zero={"stage": 2},
        checkpoint={"every": 2, "background": True},
        evaluate={"every": 1000},
        cluster={"workers": 2},
    )
    return lambda: tiny_job(recipe, folder / "runs", world_size=2)


def train(rank: Rank, job: Job) -> str:
    return run_rank(job, rank)


def with_fault(rank: Rank, job: Job, fault: str) -> str:
    """Rank 1 meets a fault in the thread that writes its file of step 4, and with `full` dies in step 6; `held`: both
    ranks write that of step 2 only once a stop is requested in step 3; `spoiled`: a weight of rank 1 is NaN while
    step 4 is copied."""
    plain, wanted = Output.write, "step-00000002" if fault == "held" else "step-00000004"
    stopping, plain_begin = threading.Event(), Checkpointer.begin
    begun: list[Checkpointer] = []

    def write(output: Output, block: Any, offset: int) -> None:
        at = str(output._path)
        if wanted in at and at.endswith(".safetensors") and threading.current_thread().name.startswith("write"):
            if fault == "held":
                assert stopping.wait(120), "step 3 comes while step 2 is written"
            elif rank.rank == 1 and fault == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif rank.rank == 1:
                code = errno.ENOSPC if fault == "full" else errno.EIO
                raise OSError(code, os.strerror(code))
        plain(output, block, offset)

    def on_step(step: int, _: dict[str, float]) -> None:
        if step == 3 and fault == "held":
            if rank.is_first:
                job.folder.request_stop("preempt")
            stopping.set()
        if step == 5 and fault == "full":
            until(lambda: begun[0].written or not begun[0].is_writing, "the thread has ended, or that is told already")
        if step == 6 and fault == "full" and rank.rank == 1:
            until(lambda: failed(job), "that it failed is told")
            os.kill(os.getpid(), signal.SIGKILL)

    def begin(self: Checkpointer, state: TrainerState, *arguments: Any) -> None:
        begun[:] = [self]
        weight = next(self._engine.module.parameters()).data.view(-1)
        whole = weight[:1].clone()
        if fault == "spoiled" and rank.rank == 1 and state.step == 4:
            weight[0] = math.nan
        plain_begin(self, state, *arguments)
        weight[:1] = whole

    Output.write, Checkpointer.begin = write, begin  # type: ignore[method-assign]
    return run_rank(job, rank, on_step)


@pytest.fixture(scope="module")
def undisturbed(make: Callable[[], Job]) -> bytes:
    job = make()
    run_ranks(2, train, job)
    return final(job)


def final(job: Job) -> bytes:
    return (job.folder.final / "model.safetensors").read_bytes()


def whole(job: Job) -> list[int]:
    """Steps of the committed checkpoints, each of which is whole."""
    found = files.committed_checkpoints(job.folder.checkpoints)
    assert [files.damaged_files(path, files.read_manifest(path)) for path in found] == [[] for _ in found]
    return [files.step_of(path) for path in found]


def test_a_rank_that_is_killed_while_it_writes(make: Callable[[], Job], undisturbed: bytes) -> None:
    job = make()
    with pytest.raises(AssertionError, match="rank 0"):
        run_ranks(2, with_fault, job, "killed")
    assert whole(job) == [2]
    assert run_ranks(2, train, job) == ["finished"] * 2
    assert whole(job) == [2, 4, 6]
    assert final(job) == undisturbed
    assert not list(job.folder.checkpoints.glob(".*")), "what the killed rank left is removed"


def failed(job: Job) -> list[CheckpointFailed]:
    return [one for one in read_events(job.folder.events) if isinstance(one, CheckpointFailed)]


def test_a_disk_that_is_full_while_it_is_written(make: Callable[[], Job], undisturbed: bytes) -> None:
    """Training goes on, the event says what the disk lacks, and a later resume takes the checkpoint before."""
    job = make()
    with pytest.raises(AssertionError, match="rank 0"):
        run_ranks(2, with_fault, job, "full")
    assert whole(job) == [2]
    assert not list(job.folder.checkpoints.glob(".*")), "nothing of the failed one is left"
    (event,) = failed(job)
    assert event.step == 4
    assert "rank 1: [Errno 28] No space left on device in " in event.error
    assert f"{job.folder.checkpoints} needs " in event.error
    assert run_ranks(2, train, job) == ["finished"] * 2
    assert whole(job) == [2, 4, 6]
    assert final(job) == undisturbed


def test_a_write_that_fails_is_an_event_and_the_run_goes_on(make: Callable[[], Job], undisturbed: bytes) -> None:
    job = make()
    assert run_ranks(2, with_fault, job, "broken") == ["finished"] * 2
    assert whole(job) == [2, 6]
    (event,) = failed(job)
    assert (event.step, "rank 1: [Errno 5] Input/output error in " in event.error) == (4, True)
    assert final(job) == undisturbed


def test_a_stop_waits_for_what_is_being_written(make: Callable[[], Job], undisturbed: bytes) -> None:
    job = make()
    assert run_ranks(2, with_fault, job, "held") == ["preempted"] * 2
    assert whole(job)[0] == 2
    stopped = whole(job)[-1]
    assert stopped >= 3
    saved = [one.step for one in read_events(job.folder.events) if isinstance(one, CheckpointSaved)]
    assert saved == sorted({2, stopped, *saved})
    job.folder.clear_stop()
    assert run_ranks(2, train, job) == ["finished"] * 2
    assert final(job) == undisturbed


def test_copied_weights_that_are_not_finite_end_the_run_on_all_ranks(make: Callable[[], Job]) -> None:
    job = make()
    with pytest.raises(AssertionError) as caught:
        run_ranks(2, with_fault, job, "spoiled")
    text = "weights are not finite after step 4 (transformer.wte.weight)"
    assert str(caught.value).count(f"TrainingError: {text}. Lower optimizer.lr") == 2
    assert "The newest checkpoint before it is that of step 2" in str(caught.value)
    assert [(one.step, one.error) for one in failed(job)] == [(4, text)]
    assert whole(job) == [2]
    assert not list(job.folder.checkpoints.glob(".*"))
