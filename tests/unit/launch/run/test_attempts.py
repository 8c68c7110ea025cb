"""Attempts of a run, and of a trial of a sweep, which are driven by the same loop: what events tell of failures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.engine.job import Job
from shardyard.errors import TrainingError
from shardyard.launch.run import driver
from shardyard.launch.run.recovery import Failure
from shardyard.launch.run.stop import Stop
from shardyard.launch.sweep import run as trial
from shardyard.tracking.files import read_jsonl
from support.tiny import tiny_job, tiny_recipe, write_corpus

LOST = Failure({"the node is gone": (1,)}, permanent=False)
WRONG = Failure({"the loss is nan": (0, 1)}, permanent=True)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    recipe = tiny_recipe(write_corpus(tmp_path))
    cluster = recipe.cluster.model_copy(update={"workers": 2, "max_failures": 3})
    return tiny_job(recipe.model_copy(update={"cluster": cluster}), tmp_path / "runs", world_size=2)


def failures(job: Job) -> list[dict[str, Any]]:
    return [event for event in read_jsonl(job.folder.events) if event["kind"] == "failure"]


def test_a_trial_of_several_workers_tells_of_each_failure(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = iter([LOST, WRONG])

    class NoRay:
        def __init__(self, address: str | None) -> None: ...

        def requested(self, demand: Any) -> Any:
            return demand

    monkeypatch.setattr(trial, "RayCluster", NoRay)
    monkeypatch.setattr(trial, "attempt", lambda *_: next(ends))
    monkeypatch.setattr("shardyard.launch.run.recovery.FIRST_WAIT_SECONDS", 0.0)
    with pytest.raises(TrainingError) as raised:
        trial.carry_out(job)
    assert str(raised.value) == "ranks 0, 1: the loss is nan", "the cause alone stands beside the trial"
    assert [event["ranks"] for event in failures(job)] == [[1], [0, 1]]
    assert job.folder.state == "failed"
    assert job.folder.info().attempts == 2


def test_a_run_that_is_asked_to_stop_while_it_fails_is_interrupted(job: Job) -> None:
    stop = Stop()
    stop.bind(job.folder)

    def start() -> Failure:
        stop.request()
        return LOST

    assert driver.drive(job, lambda given: driver.until_done(given, start)) == "interrupted"
    assert [event["ranks"] for event in failures(job)] == [[1]]
    assert job.folder.state == "interrupted"


def test_a_request_that_comes_before_the_run_ends_it_before_its_first_step(job: Job) -> None:
    stop = Stop()
    stop.request("preempt")
    stop.request("interrupt")
    assert stop.reason == "preempt", "the first one counts"
    stop.bind(job.folder)
    assert driver.drive(job, lambda given: pytest.fail("it trains")) == "preempted"


def test_a_failure_in_this_process_is_an_event(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such column")

    monkeypatch.setattr("shardyard.launch.run.local.run_local", fail)
    with pytest.raises(ValueError, match="no such column"):
        driver.drive(job, driver.locally)
    assert [(event["message"], event["ranks"]) for event in failures(job)] == [("no such column", [0])]
    assert job.folder.state == "failed"
