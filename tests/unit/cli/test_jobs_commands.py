"""`ps`, `logs`, `stop`, `wait` and `inspect` over several schedulers, and what they say of a job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.main import run as command
from shardyard.cli.view.jobs import age_seconds, doing, job_fields
from shardyard.errors import ShardyardError
from shardyard.launch.jobs.progress import JobProgress
from shardyard.launch.schedulers import registry
from shardyard.launch.schedulers.base import JobHandle, JobStatus
from shardyard.launch.schedulers.lookup import Job
from shardyard.planning.shortage import Shortage
from shardyard.tracking.files import encode
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.waiting import Wait
from support.schedulers.fake import FakeScheduler


class SecondScheduler(FakeScheduler):
    """Another one."""

    name = "second"


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeScheduler, SecondScheduler]:
    """Two schedulers that this host is set up for, and no others."""
    first, second = FakeScheduler(), SecondScheduler()
    made: dict[str, Any] = {
        one.name: type("Known", (type(one),), {"__new__": lambda cls, address=None, one=one: one})
        for one in (first, second)
    }
    monkeypatch.setattr(registry, "_registered", made)
    return first, second


def _lines(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split("\t") for line in capsys.readouterr().out.splitlines()]


def test_ps_shows_the_jobs_of_all_schedulers_and_which_has_them(
    two: tuple[FakeScheduler, SecondScheduler], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two
    old = first.add("gpt-1", name="small")
    new = second.add("vit-2", job_id="77", folder=RunFolder.create(tmp_path, "vit", "", "", run_id="vit-2").path)
    first.start(old)
    first.write(old, f"{JobProgress(120, 500, 1.93).to_line()}\n")
    assert command(["ps"]) == 0
    rows = _lines(capsys)[-2:]
    assert [(row[0], row[1], row[2], row[3], row[-1]) for row in rows] == [
        ("vit-2", "vit-2", "PENDING", "no room", "second"),
        ("job-1", "small", "RUNNING", "step 120/500, loss 1.9300", "fake"),
    ]
    assert command(["ps", "--on", "second", "-q"]) == 0
    assert capsys.readouterr().out == "vit-2\n"
    second.end(new, 124)
    assert command(["ps", "-q"]) == 0
    assert capsys.readouterr().out == "job-1\n"
    assert command(["ps", "--all", "--json"]) == 0
    listed = {job["id"]: job for job in json.loads(capsys.readouterr().out)}
    known = listed["vit-2"]
    assert (known["scheduler"], known["job_id"], known["state"], known["scheduler_state"], known["exit_code"]) == (
        *("second", "77", "FAILED", "E"),
        124,
    )
    assert listed["job-1"]["resources"] == {"nodes": 1, "cpus": 2.0, "gpus": 0.0}


def test_a_silent_scheduler_costs_ps_one_line_of_warning(
    two: tuple[FakeScheduler, SecondScheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two
    first.add("gpt-1")
    second.broken = ShardyardError("the second one\ndoes not answer.")
    assert command(["ps", "-q"]) == 0
    shown = capsys.readouterr()
    assert shown.out == "job-1\n"
    assert shown.err.splitlines() == ["warning: jobs of second are not shown: the second one does not answer."]
    first.broken = ShardyardError("nor does the first.")
    assert command(["ps"]) == 1
    assert "nor does the first" in capsys.readouterr().err


def test_ps_says_where_there_are_none(
    two: tuple[FakeScheduler, SecondScheduler], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(["ps"]) == 0
    assert "No job is waiting or running at fake and second; `shardyard ps --all` lists" in capsys.readouterr().err
    assert command(["ps", "--on", "third"]) == 2
    assert "there is no scheduler 'third'; there are fake, second" in capsys.readouterr().err


def test_jobs_are_named_by_id_or_run_id_and_never_by_chance(
    two: tuple[FakeScheduler, SecondScheduler], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = two
    runs = ["--runs-dir", str(tmp_path)]
    mine, theirs = first.add("gpt-1"), second.add("gpt-2", job_id="77")
    second.start(theirs)
    second.write(theirs, f"one\n{JobProgress(1, 2).to_line()}\ntwo\n")
    assert command(["logs", "gpt-2", "-n", "1", *runs]) == 0
    assert capsys.readouterr().out == "two\n"
    assert command(["stop", "gpt", *runs]) == 2
    assert "may be any of 2 jobs at fake and second: job-1 (fake), 77 (second)" in capsys.readouterr().err
    assert not second.jobs["77"].ended
    assert command(["wait", "77", "--timeout", "0", *runs]) == 124
    assert "77 is still RUNNING after 0 s." in capsys.readouterr().err
    assert command(["stop", "77", *runs]) == 0
    assert "`shardyard wait 77` waits for it" in capsys.readouterr().err
    assert command(["wait", "gpt-2", *runs]) == 130
    assert command(["logs", "-f", "77", *runs]) == 130
    assert capsys.readouterr().out == "one\ntwo\n"
    assert command(["stop", "77", *runs]) == 0
    assert "has already ended (STOPPED)" in capsys.readouterr().err
    assert command(["inspect", "job-1", *runs]) == 0
    assert "2 cpus" in capsys.readouterr().out
    assert not first.jobs[mine.id].ended


def _job(state: Any = "RUNNING", *, folder: Path | None = None, code: int | None = None, log: str = "") -> Job:
    scheduler = FakeScheduler()
    status = JobStatus(JobHandle("fake", "a", "a", folder), "a", state, reason="Ray prepares it", exit_code=code)
    scheduler.jobs["a"] = status
    scheduler.write(status.job, log)
    return Job(scheduler, status)


def test_what_a_job_does_comes_from_the_run_folder_or_the_log(tmp_path: Path) -> None:
    waiting = "waiting for resources: needs 2 CPU cores; 0 free"
    wait = Wait("resources", shortage=Shortage("cpus", 2.0, available=0.0))
    folder = RunFolder.create(tmp_path, "tiny", "", "", total_steps=500, waiting=wait)
    assert doing(_job("PENDING", folder=folder.path)) == "Ray prepares it"
    assert doing(_job(folder=folder.path)) == waiting
    folder.update(waiting=None)
    assert doing(_job(folder=folder.path)) == "starting"
    folder.metrics.write_text(encode({"step": 120, "time": 1.0, "train/loss": 1.93}) + "\n")
    assert doing(_job(folder=folder.path)) == "step 120/500, loss 1.9300"
    log = f"tiny: 500 steps\n{JobProgress(waiting=wait).to_line()}\n"
    assert doing(_job(log=log)) == waiting
    assert doing(_job(log=f"{log}{JobProgress(120, 500, 1.93).to_line()}\n")) == "step 120/500, loss 1.9300"
    assert doing(_job(log="  120/500   1.9300  1.0e-3\n")) == "starting", "lines for people are not parsed"
    assert doing(_job("SUCCEEDED", folder=folder.path, code=0)) == "exit code 0, step 120/500, loss 1.9300"
    assert job_fields(_job(log=log))["progress"] == {"step": 0, "waiting": wait.as_json()}
    assert job_fields(_job("SUCCEEDED", code=0))["progress"] is None


def test_age() -> None:
    assert age_seconds(JobStatus(JobHandle("fake", "a"), "a", "RUNNING", submitted=1000.0), now=1010.0) == 10.0
    assert age_seconds(JobStatus(JobHandle("fake", "a"), "a", "RUNNING")) is None


def test_a_run_without_its_process_is_not_said_to_stop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(tmp_path, "tiny", "a", "b")
    run.update(state="running")
    run.update(driver={**run.info().driver, "pid": 2**22 + 1})
    assert command(["stop", run.id, "--runs-dir", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert f"{run.id} cannot be stopped: its process 4194305 on {run.info().driver['host']} is gone" in said
    assert f"shardyard resume {run.path}" in said
    assert run.stop_requested() is None
    run.update(state="running")
    assert command(["stop", run.id, "--runs-dir", str(tmp_path)]) == 0
    assert run.stop_requested() == "interrupt"
