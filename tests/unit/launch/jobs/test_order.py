"""The order of submission: positions from what Ray's Jobs API lists, and records of jobs that have joined the queue."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from shardyard.launch.jobs import order
from shardyard.launch.jobs.order import Position, join, position_after, wait_for_earlier
from shardyard.launch.ray.queue import QueueSlot, slot_path
from shardyard.launch.schedulers.ray import jobs as ray_jobs
from support.waiting import PATIENCE_SECONDS

MEMBER = """
import sys, time
from pathlib import Path
from shardyard.launch.jobs.order import join
join(Path(sys.argv[1]), "living")
print("joined", flush=True)
time.sleep(3600)
"""


def test_a_job_comes_after_all_that_have_not_ended_whatever_the_clocks_say() -> None:
    assert position_after({}, now=100.0) == Position(100.0)
    assert position_after({"a": 50.0, "b": 60.0}, now=100.0) == Position(100.0, ("a", "b"))
    late = position_after({"a": 150.0}, now=100.0)
    assert late.submitted > 150.0
    assert late.after == ("a",)
    assert slot_path(Path("q"), 150.0, "z") < slot_path(Path("q"), late.submitted, "a")


def test_only_jobs_of_ours_that_have_not_ended_count() -> None:
    class Api:
        def jobs(self) -> list[dict[str, Any]]:
            own = {"shardyard_submitted": "7.250"}
            return [
                {"submission_id": "ended", "status": "SUCCEEDED", "metadata": own},
                {"submission_id": "waits", "status": "PENDING", "metadata": own},
                {"submission_id": "runs", "status": "RUNNING", "metadata": {"shardyard_submitted": "8.5"}},
                {"submission_id": "of-an-earlier-version", "status": "RUNNING", "metadata": {"shardyard_run": "x"}},
                {"submission_id": "somebody-elses", "status": "RUNNING", "metadata": None},
            ]

    assert ray_jobs._unended(Api()) == {"waits": 7.25, "runs": 8.5}  # type: ignore[arg-type]


def test_earlier_jobs_join_first_or_are_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "POLL_SECONDS", 0.01)
    wait_for_earlier(tmp_path, [])
    looks = iter([False, False, True])
    wait_for_earlier(tmp_path, ["a"], lambda: next(looks))
    assert next(looks, None) is None, "it waited for the other job until it was asked to stop"
    join(tmp_path, "a")
    wait_for_earlier(tmp_path, ["a"])
    monkeypatch.setattr(order, "STARTING_SECONDS", 0.05)
    began = time.monotonic()
    wait_for_earlier(tmp_path, ["a", "b"])
    assert time.monotonic() - began >= 0.05


def test_records_are_no_slots_and_last_as_long_as_their_jobs(tmp_path: Path) -> None:
    living = subprocess.Popen([sys.executable, "-c", MEMBER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert living.stdout is not None
        assert living.stdout.readline() == b"joined\n"
        records = tmp_path / ".joined"
        (records / "ended").touch()
        (records / "just-ended").touch()
        old = time.time() - order.KEPT_SECONDS - 1
        for name in ("living", "ended"):
            os.utime(records / name, (old, old))
        join(tmp_path, "mine")
        assert {path.name for path in records.iterdir()} == {"living", "just-ended", "mine"}
        slot = QueueSlot.take(slot_path(tmp_path, 2.0, "mine"))
        assert slot.ahead() == 0
        slot.give_back()
        assert records.stat().st_mode & 0o077 == 0
        living.send_signal(signal.SIGKILL)
        living.wait(timeout=PATIENCE_SECONDS)
        join(tmp_path, "next")
        assert {path.name for path in records.iterdir()} == {"just-ended", "mine", "next"}
    finally:
        living.kill()
        living.communicate()
