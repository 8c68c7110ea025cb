"""The queue of jobs: the order of submission, and what happens when an owner dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from shardyard.launch.ray import queue
from shardyard.launch.ray.queue import QueueSlot, hold_slot, placed, queue_folder, slot_path, wait_for_slot
from support.waiting import PATIENCE_SECONDS

HOLDER = """
import sys, time
from pathlib import Path
from shardyard.launch.ray.queue import QueueSlot
QueueSlot.take(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(3600)
"""


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(queue, "_held", None)
    monkeypatch.delenv(queue.SLOT_VARIABLE, raising=False)


def test_slots_sort_by_time_of_submission_whatever_the_digits(tmp_path: Path) -> None:
    times = [9.9, 10.0, 1_700_000_000.123, 1_700_000_000.124, 20_000_000_000.0]
    paths = [slot_path(tmp_path, time, "job") for time in times]
    assert sorted(paths) == paths
    assert slot_path(tmp_path, 5.0, "a") < slot_path(tmp_path, 5.0, "b")


def test_a_slot_waits_for_earlier_ones_and_not_for_later_ones(tmp_path: Path) -> None:
    second = QueueSlot.take(slot_path(tmp_path, 2.0, "second"))
    first = QueueSlot.take(slot_path(tmp_path, 1.0, "first"))
    third = QueueSlot.take(slot_path(tmp_path, 3.0, "third"))
    assert [first.ahead(), second.ahead(), third.ahead()] == [0, 1, 2]
    first.give_back()
    first.give_back()
    assert [second.ahead(), third.ahead()] == [0, 1]
    second.give_back()
    third.give_back()
    assert not list(tmp_path.iterdir())


def test_turns_come_in_order_and_one_at_a_time(tmp_path: Path) -> None:
    slots = [QueueSlot.take(slot_path(tmp_path, float(number), "job")) for number in (3, 1, 4, 0, 2)]
    served: list[str] = []

    def serve(slot: QueueSlot) -> None:
        assert wait_for_slot(slot)
        served.append(slot.path.name)
        slot.give_back()

    threads = [threading.Thread(target=serve, args=(slot,)) for slot in slots]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PATIENCE_SECONDS)
    assert served == sorted(served)
    assert len(served) == len(slots)


def test_an_owner_that_is_killed_frees_its_place(tmp_path: Path) -> None:
    path = slot_path(tmp_path, 1.0, "killed")
    owner = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"held\n"
        later = QueueSlot.take(slot_path(tmp_path, 2.0, "later"))
        assert later.ahead() == 1
        owner.send_signal(signal.SIGKILL)
        owner.wait(timeout=PATIENCE_SECONDS)
        assert later.ahead() == 0
        assert not path.exists()
    finally:
        owner.kill()
        owner.communicate()


def test_the_lock_lives_as_long_as_either_process_that_holds_it(tmp_path: Path) -> None:
    slot = QueueSlot.take(slot_path(tmp_path, 1.0, "job"))
    later = QueueSlot.take(slot_path(tmp_path, 2.0, "later"))
    driver = subprocess.Popen(["sleep", "3600"], pass_fds=(slot.descriptor,))
    try:
        os.close(slot.descriptor)
        assert later.ahead() == 1, "the driver still holds the descriptor"
    finally:
        driver.kill()
        driver.wait()
    assert later.ahead() == 0


def test_waiting_says_how_many_are_ahead_when_that_changes_and_ends_when_asked(tmp_path: Path) -> None:
    first, second = (QueueSlot.take(slot_path(tmp_path, float(number), "job")) for number in (1, 2))
    mine = QueueSlot.take(slot_path(tmp_path, 3.0, "mine"))
    said: list[int] = []
    looks = iter([False, False, False, True])

    def stopped() -> bool:
        look = next(looks)
        if not said[1:] and said:
            first.give_back()
        return look

    assert wait_for_slot(mine, stopped, said.append) is False
    assert said == [2, 1]
    second.give_back()
    assert wait_for_slot(mine) is True


def test_a_run_that_is_no_job_never_waits() -> None:
    assert hold_slot() is True
    placed()


def test_a_driver_holds_the_turn_that_it_inherits_until_it_is_placed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = QueueSlot.take(slot_path(tmp_path, 1.0, "mine"))
    later = QueueSlot.take(slot_path(tmp_path, 2.0, "later"))
    for name, value in mine.to_variable().items():
        monkeypatch.setenv(name, value)
    assert hold_slot() is True
    assert later.ahead() == 1
    placed()
    assert later.ahead() == 0
    # A second attempt has its old place again.
    assert hold_slot() is True
    assert later.ahead() == 1
    placed()
    assert later.ahead() == 0


def test_each_cluster_has_a_queue_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert queue_folder() == queue_folder("10.0.0.1:6379") != queue_folder("10.0.0.2:6379")


def test_the_folder_of_slots_is_closed_to_others(tmp_path: Path) -> None:
    QueueSlot.take(slot_path(tmp_path / "queue", 1.0, "job")).give_back()
    assert (tmp_path / "queue").stat().st_mode & 0o077 == 0
