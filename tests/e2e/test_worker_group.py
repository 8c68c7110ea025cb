"""The workers of a run on a real Ray: what is left of them, a rank that hangs, and nodes that have no room."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest
import ray
from ray.util import placement_group_table

from shardyard.launch.ray import spares, worker_group
from shardyard.launch.ray.cluster import ray_cluster
from shardyard.launch.ray.failures import failure_of
from shardyard.launch.ray.rank_actor import Setup
from shardyard.launch.ray.worker_group import NotPlacedError, WorkerGroup, WorkersFailedError
from shardyard.launch.run.recovery import Failure
from shardyard.planning.placement import ANYWHERE, Placement, ask
from shardyard.recipe.schema import Cluster, Network
from shardyard.tracking.run.waiting import Wait
from support.waiting import until

pytestmark = pytest.mark.slow

WORKERS = Cluster(workers=2, gpus_per_worker=0)
DEMAND = ask(WORKERS, gpu=False)
SETUP = Setup(Network(), gpu=False, forwarded={}, private={})


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with ray_cluster(WORKERS):
        yield


def nothing_is_left(pids: list[int]) -> None:
    def left() -> list[object]:
        groups = [group for group in placement_group_table().values() if group["state"] != "REMOVED"]
        return [*groups, *(pid for pid in pids if psutil.pid_exists(pid))]

    until(lambda: not left(), lambda: f"all is given back: {left()}")
    until(lambda: ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"], "the cores are free")


def test_a_rank_that_hangs_does_not_hold_the_others_and_is_ended() -> None:
    with WorkerGroup(DEMAND, ANYWHERE, SETUP) as group:
        members = group.place()
        pids = [member.pid for member in members]
        assert len(set(pids)) == 2
        ready = group.join(members, 60.0)
        assert any(words.startswith("GLOO_SOCKET_IFNAME=") for words in ready[1].settings)
        os.kill(pids[1], signal.SIGSTOP)
        # What is no job fails at once, and rank 1 never answers.
        with pytest.raises(WorkersFailedError) as caught:
            group.train(b"", lambda: None)
    assert list(caught.value.errors) == [0]
    assert failure_of(caught.value.errors, lambda rank, text: text) == Failure(
        {"EOFError: Ran out of input": (0,)}, permanent=False
    )
    nothing_is_left(pids)


def test_a_rank_that_is_killed_is_the_one_that_is_named() -> None:
    with WorkerGroup(DEMAND, ANYWHERE, SETUP) as group:
        members = group.place()
        pids = [member.pid for member in members]
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(WorkersFailedError) as caught:
            group.join(members, 60.0)
    assert list(caught.value.errors) == [1]
    found = failure_of(caught.value.errors, lambda rank, text: f"{rank} is gone")
    assert found == Failure({"1 is gone": (1,)}, permanent=False)
    nothing_is_left(pids)


def test_a_stop_ends_the_wait_for_ranks_that_do_not_answer() -> None:
    asked: list[bool] = []
    group = WorkerGroup(DEMAND, ANYWHERE, SETUP, lambda: bool(asked))
    try:
        members = group.place()
        pids = [member.pid for member in members]
        os.kill(pids[1], signal.SIGSTOP)
        asked.append(True)
        with pytest.raises(NotPlacedError) as caught:
            group.join(members, 60.0)
        assert caught.value.wait is None
    finally:
        group.close(gently=False)
    nothing_is_left(pids)


def test_workers_that_do_not_answer_in_time_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_group, "ANSWER_SECONDS", 0.0)
    group = WorkerGroup(DEMAND, ANYWHERE, SETUP)
    with pytest.raises(NotPlacedError) as caught:
        group.place()
    group.close(gently=False)
    assert caught.value.wait == Wait("no_answer", workers=2)
    nothing_is_left([])


@pytest.mark.parametrize("stopped", [True, False])
def test_workers_that_get_no_place_leave_nothing(stopped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their node is gone. A run that is asked to stop does not wait for it."""
    monkeypatch.setattr(worker_group, "PLACEMENT_SECONDS", 3600.0 if stopped else 0.0)
    gone = Placement((("f" * 56, 2),))
    with WorkerGroup(DEMAND, gone, SETUP, lambda: stopped) as group, pytest.raises(NotPlacedError) as caught:
        group.place()
    assert caught.value.wait == (None if stopped else Wait("taken"))
    nothing_is_left([])


def test_spares_take_the_places_of_ranks_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of which hangs. The spares have imported everything, and compute with as many threads."""
    monkeypatch.setattr(spares, "AFTER_SECONDS", 0.0)
    with WorkerGroup(DEMAND, ANYWHERE, SETUP, spares=True) as group:
        before = group.place()
        group.join(before, 60.0)
        os.kill(before[1].pid, signal.SIGSTOP)
        with pytest.raises(WorkersFailedError):
            group.train(b"", lambda: None)
        assert group.has_spares
        group.end_ranks()
        after = group.replace()
        assert not any(psutil.pid_exists(member.pid) for member in before)
        assert [member.node for member in after] == [member.node for member in before]
        group.join(after, 60.0)
        with pytest.raises(WorkersFailedError) as caught:
            group.train(b"", lambda: None)
        assert sorted(caught.value.errors) == [0, 1]
    nothing_is_left([member.pid for member in (*before, *after)])
