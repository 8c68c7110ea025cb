"""The contract of a scheduler, in memory and with stand-ins for two; e2e/test_schedulers.py has real ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.schedulers import registry
from shardyard.launch.schedulers.base import JobHandle, JobNotFoundError, Scheduler
from shardyard.launch.schedulers.kuberay.scheduler import KubeRayScheduler
from shardyard.launch.schedulers.ray.scheduler import RayScheduler
from shardyard.recipe.loading.load import load_recipe
from support.kuberay.cases import CLAIM, recipe_and_plan
from support.kuberay.server import Cluster, kube_server
from support.schedulers.contract import (
    Case,
    check_a_job_that_is_stopped,
    check_a_job_that_succeeds,
    check_questions_about_nothing,
)
from support.schedulers.example import example
from support.schedulers.fake import FakeScheduler
from support.schedulers.ray_stub import RayStub, ray_stub
from support.waiting import until

WORDS = "  2/2   1.9300  1.0e-3\n"


# In place of a run: a process that makes the run folder and, if it is a long one, goes on until it is interrupted.
STAND_IN = """
import json, signal, sys, time
from pathlib import Path
from shardyard.launch.jobs.entry import run_folder
spec = json.loads(Path(sys.argv[1]).read_text())
stopped = []
signal.signal(signal.SIGINT, lambda number, frame: stopped.append(number))
folder = run_folder(spec)
print("begin")
print("  2/2   1.9300  1.0e-3", flush=True)
folder.metrics.write_text("{}")
end = time.monotonic() + 300  # whatever becomes of the test
while "long" in spec["run_id"] and not stopped and time.monotonic() < end:
    signal.sigtimedwait([], 0.01)
sys.exit(130 if stopped else 0)
"""


@pytest.fixture(params=["memory", "kubernetes", "ray", "example"])
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    runs = tmp_path / "runs"
    if request.param == "memory":
        scheduler = FakeScheduler()
        monkeypatch.setitem(
            registry._registered, "fake", type("Known", (FakeScheduler,), {"__new__": lambda cls, _=None: scheduler})
        )
        yield _in_memory(scheduler, runs)
        return
    if request.param == "ray":
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
        monkeypatch.setattr(RayScheduler, "poll_seconds", 0.01)
        with ray_stub() as stub:
            yield _on_ray(stub, runs)
        return
    if request.param == "example":
        monkeypatch.setenv("PROCESSES_HOME", str(tmp_path / "processes"))
        with example(tmp_path) as (scheduler_class, module):
            stand_in = tmp_path / "stand_in.py"
            stand_in.write_text(STAND_IN, encoding="utf-8")
            monkeypatch.setattr(module, "entry_command", lambda spec, python: [python, str(stand_in), spec])
            monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
            yield _by_the_example(scheduler_class(), runs)
        return
    with kube_server(tmp_path) as (cluster, config):
        monkeypatch.setenv("KUBECONFIG", str(config))
        monkeypatch.setattr(KubeRayScheduler, "poll_seconds", 0.01)
        yield _on_kubernetes(cluster, runs)


def _request(runs: Path, run_id: str) -> SubmitRequest:
    loaded, plan = load_recipe("gpt/quickstart", [CLAIM]), recipe_and_plan("gpt/quickstart", CLAIM)[1]
    return SubmitRequest("gpt/quickstart", (CLAIM,), loaded, plan, runs, job_name="gpt-quickstart", run_id=run_id)


def _in_memory(scheduler: FakeScheduler, runs: Path) -> Case:
    def finish(job: JobHandle) -> None:
        scheduler.start(job)
        scheduler.write(job, f"begin\n{WORDS}")
        scheduler.end(job, 0)

    return Case(
        scheduler,
        lambda: _request(runs, "short-1"),
        lambda: _request(runs, "long-1"),
        scheduler.start,
        finish,
        WORDS,
        folders=False,
    )


def _on_ray(stub: RayStub, runs: Path) -> Case:
    def begin(job: JobHandle) -> None:
        stub.jobs[job.id]["status"] = "RUNNING"

    def finish(job: JobHandle) -> None:
        stub.logs[job.id] = f"begin\n{WORDS}"
        stub.end(job.id, "SUCCEEDED", 0)

    scheduler = RayScheduler(stub.url)
    return Case(
        scheduler,
        lambda: _request(runs, "short-1"),
        lambda: _request(runs, "long-1"),
        begin,
        finish,
        WORDS,
        folders=False,
    )


def _by_the_example(scheduler: Scheduler, runs: Path) -> Case:
    scheduler.poll_seconds = 0.01

    def begin(job: JobHandle) -> None:
        until((runs / job.run_id / "metrics.jsonl").exists, "the job has begun")

    return Case(
        scheduler,
        lambda: _request(runs, "short-1"),
        lambda: _request(runs, "long-1"),
        begin,
        lambda job: None,
        WORDS,
    )


def _on_kubernetes(cluster: Cluster, runs: Path) -> Case:
    def set_status(job: JobHandle, **status: Any) -> None:
        cluster.objects["rayjobs", "default", job.id.rpartition("/")[2]]["status"] = status

    def begin(job: JobHandle) -> None:
        set_status(job, jobDeploymentStatus="Running", jobStatus="RUNNING", startTime="2026-01-02T03:05:00Z")

    def finish(job: JobHandle) -> None:
        times = {"startTime": "2026-01-02T03:05:00Z", "endTime": "2026-01-02T03:06:00Z"}
        set_status(job, jobDeploymentStatus="Complete", jobStatus="SUCCEEDED", **times)
        pod = {"name": "pod-1", "labels": {"job-name": job.run_id}, "creationTimestamp": "2026-01-02T03:04:05Z"}
        cluster.objects["pods", "default", "pod-1"] = {"metadata": pod, "status": {"phase": "Succeeded"}}
        cluster.logs["pod-1"] = ["begin", WORDS.rstrip("\n")]

    return Case(
        KubeRayScheduler(),
        lambda: _request(runs, "short-1"),
        lambda: _request(runs, "long-1"),
        begin,
        finish,
        WORDS,
        folders=False,
    )


def test_questions_about_nothing(case: Case, tmp_path: Path) -> None:
    check_questions_about_nothing(case, tmp_path)


def test_a_job_that_is_stopped(case: Case) -> None:
    check_a_job_that_is_stopped(case)


def test_a_job_that_succeeds(case: Case) -> None:
    check_a_job_that_succeeds(case)


def test_a_job_that_is_deleted_while_it_is_waited_for_counts_as_stopped(case: Case) -> None:
    scheduler = case.scheduler
    handle = scheduler.submit(case.endless(), lambda line: None)
    assert handle is not None
    case.begin(handle)
    real, asked = scheduler.status, 0

    def status(job: JobHandle) -> Any:
        nonlocal asked
        asked += 1
        if asked < 3:
            return real(job)
        return real(JobHandle(job.scheduler, "none-such"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scheduler, "status", status)
        ended = scheduler.wait(handle)
    assert (ended.state, ended.reason, asked) == ("STOPPED", "deleted", 3)
    scheduler.stop(handle)
    with suppress(JobNotFoundError):
        assert scheduler.wait(handle).ended
