"""Attempts of a run, and of a trial of a sweep, which are driven by the same loop: what events tell of failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shardyard.engine.job import Job
from shardyard.errors import TrainingError
from shardyard.launch.describe import wait_in_words
from shardyard.launch.ray.worker_group import NotPlacedError
from shardyard.launch.run import driver
from shardyard.launch.run.recovery import Failure
from shardyard.launch.run.stop import Stop
from shardyard.launch.sweep import run as trial
from shardyard.planning.placement import Amount, Demand, Node
from shardyard.tracking.files import read_jsonl
from shardyard.tracking.run.events import Waiting, read_events
from shardyard.tracking.run.waiting import Wait
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
    assert [event["causes"] for event in failures(job)] == [[{"message": "no such column", "ranks": [0]}]]
    assert job.folder.state == "failed"


class Scene:
    """A cluster of one node, and attempts that end one after the other as they are told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, cores: float, autoscales: bool, ends: Sequence[Any]) -> None:
        self.autoscales = autoscales
        self.waiting: list[Wait | None] = []
        self._node = Node("a", Amount(cores), Amount(cores))
        self._ends = iter(ends)
        monkeypatch.setattr(driver, "ray_cluster", self._connect)
        monkeypatch.setattr(driver, "settle", lambda job, *_: job)
        monkeypatch.setattr(driver, "attempt", self._attempt)

    def nodes(self) -> list[Node]:
        return [self._node]

    def requested(self, demand: Demand) -> Demand:
        return demand

    @contextmanager
    def _connect(self, settings: object) -> Iterator[Scene]:
        yield self

    def _attempt(self, job: Job, *_: object, **__: object) -> Any:
        self.waiting.append(job.folder.info().waiting)
        end = next(self._ends)
        if isinstance(end, Exception):
            raise end
        return end


def waits(job: Job) -> list[Wait]:
    return [event.wait for event in read_events(job.folder.events) if isinstance(event, Waiting)]


def test_workers_that_do_not_answer_are_no_attempt_and_the_reason_is_told(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = Wait("no_answer", workers=1)
    scene = Scene(monkeypatch, cores=2.0, autoscales=False, ends=[NotPlacedError(silent), "finished"])
    assert driver.drive(job, driver.on_ray) == "finished"
    assert waits(job) == [silent]
    assert wait_in_words(silent) == "waiting: 1 worker did not answer; placing all again"
    assert scene.waiting == [None, silent]
    assert (job.folder.info().attempts, job.folder.info().waiting) == (1, None)


def test_a_run_that_waits_for_an_autoscaler_says_so_once_and_until_it_is_placed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = Scene(monkeypatch, cores=1.0, autoscales=True, ends=[NotPlacedError(), NotPlacedError(), "finished"])
    assert driver.drive(job, driver.on_ray) == "finished"
    (wait,) = waits(job)
    assert wait.autoscaler
    assert scene.waiting == [wait] * 3
    assert job.folder.info().waiting is None


class Places:
    """Places that a failed attempt leaves, as `attempt.Kept` does; `ready` for as many attempts as `ends` has."""

    def __init__(self, ends: Sequence[Any]) -> None:
        self.ends = list(ends)

    def __enter__(self) -> Places:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def ready(self) -> bool:
        return bool(self.ends)

    def note(self, **times: float) -> None: ...


@pytest.mark.parametrize(("again", "fresh"), [(["finished"], [LOST]), ([None], [LOST, "finished"])])
def test_kept_places_are_used_without_the_queue_and_given_up_if_a_spare_is_missing(
    job: Job, monkeypatch: pytest.MonkeyPatch, again: list[Any], fresh: list[Any]
) -> None:
    places = Places([])

    def attempt(*arguments: object, **options: object) -> Any:
        ended = scene._attempt(*arguments, **options)  # type: ignore[arg-type]
        places.ends = again if ended is LOST else []
        return ended

    scene = Scene(monkeypatch, cores=2.0, autoscales=False, ends=fresh)
    queued: list[int] = []
    monkeypatch.setattr(driver, "attempt", attempt)
    monkeypatch.setattr(driver, "Kept", lambda: places)
    monkeypatch.setattr(driver, "attempt_again", lambda kept, _: kept.ends.pop())
    monkeypatch.setattr(driver, "hold_slot", lambda *_: not queued.append(1))
    assert driver.drive(job, driver.on_ray) == "finished"
    assert len(queued) == len(fresh)
    assert job.folder.info().attempts == 2
