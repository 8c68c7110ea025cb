"""The order of submission: positions from what Ray's Jobs API lists, and records of jobs that have joined the queue."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardyard.launch.jobs import order
from shardyard.launch.jobs.order import Position, join, position_after, wait_for_earlier
from shardyard.launch.jobs.spec import SPEC_NAME, JobSpec
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.ray.queue import QueueSlot, slot_path
from shardyard.launch.run.plans import plan_of
from shardyard.launch.schedulers.ray import jobs as ray_jobs
from shardyard.launch.schedulers.ray.api import Target
from shardyard.recipe.loading.load import load_recipe
from support.cli import write_recipe
from support.tiny import write_corpus
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


class Server:
    """Ray's job server as far as `submit` asks it."""

    def __init__(self) -> None:
        self.cluster = Target("http://head:8265", None)
        self.bodies: list[dict[str, Any]] = []
        self.specs: list[JobSpec] = []

    def jobs(self) -> list[dict[str, Any]]:
        return [{**body, "status": "PENDING"} for body in self.bodies]

    def has_package(self, name: str) -> bool:
        return False

    def upload(self, name: str, content: bytes) -> None:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            self.specs.append(json.loads(archive.read(SPEC_NAME)))

    def submit(self, body: dict[str, Any]) -> str:
        self.bodies.append(body)
        return str(body["submission_id"])


def test_a_job_that_is_submitted_later_comes_after_even_where_the_clock_is_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith(("WANDB_", "HF_", "HUGGING_FACE", "AWS_")):
            monkeypatch.delenv(name)
    path = write_recipe(tmp_path, write_corpus(tmp_path))
    loaded = load_recipe(str(path))
    request = SubmitRequest(str(path), (), loaded, plan_of(loaded), tmp_path / "runs", "tiny")
    server: Any = Server()
    clock = iter([1000.0, 400.0, 2000.0])
    monkeypatch.setattr(order, "time", SimpleNamespace(time=lambda: next(clock)))
    ids = [ray_jobs.submit(request, lambda text: None, server) for _ in range(3)]
    assert [spec.get("after") for spec in server.specs] == [[], ids[:1], ids[:2]]
    times = [spec["submitted"] for spec in server.specs]
    assert (times[0], times[2]) == (1000.0, 2000.0)
    assert 1000.0 < times[1] < 1000.1
    slots = [slot_path(tmp_path, spec["submitted"], spec["run_id"]) for spec in server.specs]
    assert slots == sorted(slots)


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
