"""A rollback is no failure: the next attempt follows at once, and nothing is counted."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shardyard.engine.job import Job
from shardyard.errors import ReplicasError, RollbackError, TrainingError
from shardyard.launch.ray.failures import failure_of
from shardyard.launch.ray.worker import rank_error
from shardyard.launch.run import local
from shardyard.launch.run.recovery import Failure, GiveUp, RankError, Retry, decide


def after(*errors: Exception) -> Failure:
    """The failure of an attempt whose ranks raised these errors, which travel as text."""
    sent = [pickle.loads(pickle.dumps(rank_error(error, stepped=True))) for error in errors]
    assert all(isinstance(one, RankError) for one in sent)
    return failure_of(dict(enumerate(sent)), lambda rank, text: text)


def test_the_next_attempt_follows_however_many_failed_before() -> None:
    failure = after(RollbackError("the loss is nan"), RollbackError("the loss is nan"))
    assert (failure.rollback, failure.permanent) == (True, False)
    assert decide(failure, failures=9, max_failures=0) == Retry(0.0)
    assert after(RollbackError("the loss is nan"), RuntimeError("Connection closed by peer")).rollback


def test_replicas_that_differ_are_a_failure_that_may_pass_and_others_are_not() -> None:
    failure = after(ReplicasError("rank 1 differs"), ReplicasError("rank 1 differs"))
    assert (failure.rollback, failure.permanent) == (False, False)
    assert decide(failure, failures=1, max_failures=3) == Retry(0.0)
    assert isinstance(decide(failure, failures=4, max_failures=3), GiveUp)
    assert after(TrainingError("the loss is nan")).permanent


def test_a_local_rank_starts_again_in_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Any] = [RollbackError("a"), RollbackError("b"), "finished"]

    def run_rank(job: Job, rank: object) -> str:
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return str(end)

    monkeypatch.setattr(local, "run_rank", run_rank)
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GLOO_SOCKET_IFNAME"):
        monkeypatch.setenv(name, "0" if "RANK" in name else "lo")
    counted: list[int] = []
    job = cast("Job", SimpleNamespace(plan=SimpleNamespace(world=SimpleNamespace(gpu=False))))
    assert local.run_local(job, rolled_back=lambda: counted.append(1)) == "finished"
    assert counted == [1, 1]
