"""Jobs of all schedulers on the page: those of one that hangs, fails or is unknown cost the others nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from shardyard.dashboard.web import jobs
from shardyard.dashboard.web.jobs import Jobs, JobsPayload
from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.schedulers import registry
from shardyard.launch.schedulers.base import Capacity, NodeStatus, Scheduler
from support.dash_cases import index_of, served, write_run
from support.schedulers.fake import FakeScheduler
from support.waiting import until


class Slow(FakeScheduler):
    """A second one, which brings nodes of its own and may hang."""

    name = "slow"

    def capacity(self) -> Capacity:
        return Capacity(None, grows=True)


@pytest.fixture
def fake() -> FakeScheduler:
    return FakeScheduler("here")


@pytest.fixture
def slow() -> Iterator[Slow]:
    made = Slow()
    yield made
    if made.hang is not None:
        made.hang.set()


@pytest.fixture
def shown(tmp_path: Path, fake: FakeScheduler, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """Jobs of both, which are asked whenever the page asks; a run is in the runs folder."""
    monkeypatch.setattr(jobs, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(FakeScheduler, "poll_seconds", 0.0)
    write_run(tmp_path / "runs", "gpt-1", losses=[3.0, 2.5], state="running", step=2)
    return Jobs(index_of(tmp_path / "runs", tmp_path / "cache"), None, lambda address: [fake, slow])


def settled(shown: Jobs) -> JobsPayload:
    """Once every scheduler has been asked after what was done last."""
    for name in ("fake", "slow"):
        shown.expire(name)
    return shown.state()


def test_jobs_of_all_schedulers_are_listed_together(shown: Jobs, fake: FakeScheduler, slow: Slow) -> None:
    shown.state()
    run = fake.add("gpt-1", name="a GPT")
    fake.start(run)
    other = slow.add("elsewhere-1", job_id="team/job-7")
    slow.jobs[other.id] = replace(slow.jobs[other.id], submitted=1.0, needs="")
    ended = slow.add("old-1", job_id="old")
    slow.end(ended, 3)
    slow.jobs[ended.id] = replace(slow.jobs[ended.id], submitted=0.5, reason="token sk-ant-" + "x" * 40)
    state = settled(shown)
    assert state["available"]
    assert [(job["scheduler"], job["id"]) for job in state["jobs"]] == [
        ("fake", run.id),
        ("slow", "team/job-7"),
        ("slow", "old"),
    ]
    first, second, third = state["jobs"]
    assert (first["name"], first["state"], first["run"], first["doing"]) == (
        "a GPT", "RUNNING", "gpt-1", "step 2/100, loss 2.5000",
    )  # fmt: skip
    assert (second["state"], second["doing"], second["needs"]) == ("PENDING", "no room", "1 node, 2 CPU cores")
    assert (second["run"], second["scheduler_state"]) == (None, "Q")
    assert (third["ended"], third["exit_code"], third["state"]) == (True, 3, "FAILED")
    assert "xxxx" not in third["message"]
    (node,) = state["nodes"]
    assert (node["scheduler"], node["up"], node["total"], node["free"]) == (
        "fake", True, {"CPU": 8.0, "GPU": 0.0}, {"CPU": 8.0, "GPU": 0.0},
    )  # fmt: skip
    assert [(one["name"], one["nodes_known"]) for one in state["schedulers"]] == [("fake", True), ("slow", False)]


def test_a_job_that_runs_in_another_folder_is_not_starting_for_ever(shown: Jobs, fake: FakeScheduler) -> None:
    job = fake.add("elsewhere-1")
    fake.start(job)
    assert settled(shown)["jobs"][0]["doing"] == "starting"
    fake.jobs[job.id] = replace(fake.jobs[job.id], started=time.time() - 1000)
    assert settled(shown)["jobs"][0]["doing"] == "its run is in another folder"


def test_one_that_hangs_costs_a_line_and_no_time(
    shown: Jobs, fake: FakeScheduler, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "FIRST_SECONDS", 0.05)
    fake.add("gpt-1")
    slow.hang = threading.Event()
    until(lambda: shown.state()["jobs"], "the other one is shown")
    before = threading.active_count()
    began = time.monotonic()
    states = [shown.state() for _ in range(20)]
    assert time.monotonic() - began < 15.0, "not FIRST_SECONDS each, and far from the patience of the one that hangs"
    assert threading.active_count() <= before + 1, "it is asked by one thread, however often the page asks"
    assert (states[-1]["schedulers"][1]["why"], states[-1]["schedulers"][1]["answered"]) == (
        "it has not answered yet.",
        False,
    )
    assert states[-1]["schedulers"][0]["answered"]
    assert states[-1]["jobs"][0]["run"] == "gpt-1"
    monkeypatch.setattr(jobs, "LATE_SECONDS", 0.0)
    late = shown.state()["schedulers"][1]
    assert (late["available"], late["why"].startswith("no answer for ")) == (False, True)
    slow.hang.set()
    slow.add("back-1")
    monkeypatch.setattr(jobs, "LATE_SECONDS", 60.0)
    until(lambda: len(shown.state()["jobs"]) == 2, "it answers again")


def test_one_that_fails_is_named_with_its_reason(shown: Jobs, fake: FakeScheduler, slow: Slow) -> None:
    fake.add("gpt-1")
    slow.broken = ShardyardError("the controller is down.")
    state = settled(shown)
    assert [one["why"] for one in state["schedulers"]] == ["", "the controller is down."]
    assert (state["available"], state["why"], len(state["jobs"])) == (True, "the controller is down.", 1)
    fake.broken = UsageError("nobody is here.")
    state = settled(shown)
    assert (state["available"], state["why"], state["jobs"]) == (False, "nobody is here.", [])
    fake.broken = TypeError("a bug")  # type: ignore[assignment]
    assert settled(shown)["why"] == "asking it failed (TypeError); the terminal has more."


def test_nodes_that_cannot_be_told_hide_no_job(
    shown: Jobs, fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Scheduler) -> Sequence[NodeStatus]:
        raise ShardyardError("nodes are secret.")

    monkeypatch.setattr(FakeScheduler, "nodes", refuse)
    fake.add("gpt-1")
    state = settled(shown)
    assert (state["nodes"], len(state["jobs"]), state["schedulers"][0]["nodes_known"]) == ([], 1, False)


def test_schedulers_that_cannot_be_made_are_a_state(tmp_path: Path) -> None:
    def broken(address: str | None) -> Sequence[Scheduler]:
        raise UsageError("package.module cannot be imported.")

    state = Jobs(index_of(tmp_path, tmp_path / "cache"), None, broken).state()
    assert (state["available"], state["why"], state["jobs"]) == (False, "package.module cannot be imported.", [])


def test_an_address_is_that_of_the_default_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    class Configured(FakeScheduler):
        name = "ray"

        @classmethod
        def is_configured(cls) -> bool:
            return False

    monkeypatch.setattr(registry, "_registered", {"ray": Configured, "slow": Slow})
    assert [(one.name, one.address) for one in registry.configured("http://head:8265")] == [
        ("ray", "http://head:8265"),
        ("slow", None),
    ]
    assert [one.name for one in registry.configured()] == ["slow"]
    monkeypatch.setattr(registry, "_registered", {"ray": Configured})
    assert [one.name for one in registry.configured()] == ["ray"]


@pytest.fixture
def client(tmp_path: Path, fake: FakeScheduler, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> Iterator[TestClient]:
    """The server, to which these two schedulers are known."""
    classes = {
        scheduler.name: type("Known", (type(scheduler),), {"__new__": lambda cls, address=None, one=scheduler: one})
        for scheduler in (fake, slow)
    }
    monkeypatch.setattr(registry, "_registered", classes)
    monkeypatch.setattr(registry, "DEFAULT", "fake")
    write_run(tmp_path / "runs", "gpt-1", state="running")
    with served(tmp_path / "runs", tmp_path / "cache") as made:
        yield made


def test_the_page_stops_a_job_and_reads_its_log_through_its_scheduler(
    client: TestClient, fake: FakeScheduler, slow: Slow
) -> None:
    ours, other = fake.add("gpt-1", job_id="1"), slow.add("bert-1", job_id="1")
    nested = slow.add("bert-2", job_id="team/job-7")
    for job in (ours, other, nested):
        (fake if job is ours else slow).start(job)
    slow.write(nested, "first\nsecond\nkey hf_" + "a" * 34 + "\n")
    # Nobody has looked at the page yet.
    assert client.post("/api/jobs/1/stop", json={"scheduler": "slow"}).json() == {"stopping": "1"}
    assert (fake.jobs["1"].state, slow.jobs["1"].state) == ("RUNNING", "STOPPED")
    listed = client.get("/api/jobs").json()["jobs"]
    assert {job["id"]: job["state"] for job in listed if job["scheduler"] == "slow"} == {
        "1": "STOPPED",
        "team/job-7": "RUNNING",
    }
    answer = client.get("/api/jobs/team%2Fjob-7/log", params={"scheduler": "slow", "lines": 2})
    assert answer.json()["text"].startswith("second\nkey ")
    assert "aaaa" not in answer.json()["text"]
    assert client.post("/api/jobs/team%2Fjob-7/stop", json={"scheduler": "slow"}).status_code == 200
    assert slow.jobs["team/job-7"].state == "STOPPED"
    unwritten = client.get("/api/jobs/1/log", params={"scheduler": "fake"})
    assert (unwritten.status_code, unwritten.json()["error"]) == (400, "1 has written nothing yet.")
    for scheduler in ("none", "", "fake"):
        assert client.get("/api/jobs/team%2Fjob-7/log", params={"scheduler": scheduler}).status_code == 404
        assert client.post("/api/jobs/team%2Fjob-7/stop", json={"scheduler": scheduler}).status_code == 404
    slow.broken = ShardyardError("the controller is down.")
    failed = client.post("/api/jobs/1/stop", json={"scheduler": "slow"})
    assert (failed.status_code, failed.json()["error"]) == (502, "the controller is down.")


def test_a_run_is_stopped_through_its_job_wherever_that_is(client: TestClient, tmp_path: Path, slow: Slow) -> None:
    job = slow.add("gpt-1", job_id="9", folder=tmp_path / "runs" / "gpt-1")
    slow.start(job)
    write_run(tmp_path / "runs", "bert-1", state="running", job={"scheduler": "slow", "id": "9"})
    until(lambda: client.get("/api/runs/bert-1").status_code == 200, "the run is in the index")
    assert client.post("/api/jobs/bert-1/stop", json={}).status_code == 200
    assert slow.jobs["9"].state == "STOPPED"
