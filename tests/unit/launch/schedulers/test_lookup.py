"""Jobs of several schedulers in one list, and the one that a name stands for."""

from __future__ import annotations

import threading
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from shardyard import plugins
from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.schedulers import registry
from shardyard.launch.schedulers.base import JobHandle, JobState, JobStatus
from shardyard.launch.schedulers.lookup import Job, ask_all, exit_code_of, find, list_jobs, pick
from shardyard.tracking.run.folder import RunFolder
from support.schedulers.fake import FakeScheduler


class OtherScheduler(FakeScheduler):
    """A second one."""

    name = "other"


@pytest.fixture
def fake() -> FakeScheduler:
    """Three jobs."""
    scheduler = FakeScheduler("here")
    for number, run in enumerate(("gpt-20261122-101010-aaaa", "gpt-20261122-101011-bbbb", "bert-20261122-101012-cccc")):
        job = scheduler.add(run, job_id=run, name=f"name-of-{run}")
        scheduler.jobs[job.id] = replace(scheduler.jobs[job.id], submitted=1000.0 + number)
    return scheduler


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch, fake: FakeScheduler) -> FakeScheduler:
    """The only scheduler that this host is set up for."""
    _known(monkeypatch, fake)
    return fake


def _known(monkeypatch: pytest.MonkeyPatch, *schedulers: FakeScheduler) -> None:
    """These schedulers are known, and made only once."""
    classes: dict[str, Any] = {}
    for scheduler in schedulers:
        made = type("Known", (type(scheduler),), {"__new__": lambda cls, address=None, one=scheduler: one})
        classes[scheduler.name] = made
    monkeypatch.setattr(registry, "_registered", classes)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("gpt-20261122-101010-aaaa", 0),
        ("gpt-20261122-101011", 1),
        ("b", 2),
        ("latest", 2),
        ("name-of-gpt-20261122-101011-bbbb", 1),
    ],
)
def test_ids_unique_beginnings_names_and_latest(fake: FakeScheduler, text: str, index: int) -> None:
    assert pick(text, [fake]).status is list(fake.jobs.values())[index]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpt-", "may be any of 2 jobs at here: gpt-20261122-101010-aaaa, gpt-20261122-101011-bbbb. Give more"),
        ("gpt-20261122-101010-aaab", "Nearest: gpt-20261122-101010-aaaa.*`shardyard ps --all --on fake` lists all"),
        ("", "No job at here is called ''"),
    ],
)
def test_names_that_stand_for_no_job_or_for_many(fake: FakeScheduler, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pick(text, [fake])


def test_no_jobs_at_all() -> None:
    with pytest.raises(UsageError, match="no jobs of Shardyard at fake"):
        pick("latest", [FakeScheduler()])


def test_a_job_is_found_across_schedulers_by_id_or_run_id(fake: FakeScheduler) -> None:
    other = OtherScheduler()
    other.add("vit-1", job_id="77")
    for name in ("77", "vit-1", "vit"):
        found = pick(name, [fake, other])
        assert (found.scheduler.name, found.status.job.id) == ("other", "77")


def test_a_name_that_two_schedulers_know_is_an_error_that_names_both(fake: FakeScheduler) -> None:
    other = OtherScheduler()
    other.add("gpt-20261122-101010-aaaa", job_id="12")
    with pytest.raises(UsageError) as caught:
        pick("gpt-20261122-101010-aaaa", [fake, other])
    assert "may be any of 2 jobs at here and other: " in str(caught.value)
    assert "gpt-20261122-101010-aaaa (fake), 12 (other)" in str(caught.value)
    assert "Say which scheduler: --on " in str(caught.value)
    assert pick("12", [fake, other]).scheduler is other


def test_a_job_that_is_not_listed_is_found_by_its_id(fake: FakeScheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fake, "list", lambda *, ended=False: [])
    found = pick("gpt-20261122-101010-aaaa", [fake])
    assert found.status.job.id == "gpt-20261122-101010-aaaa"


def test_a_scheduler_that_fails_costs_its_own_jobs_alone(fake: FakeScheduler) -> None:
    other = OtherScheduler()
    other.broken = ShardyardError("the other is down.")
    listing = list_jobs([other, fake], ended=False)
    assert [job.status.job.run_id[:4] for job in listing.jobs] == ["gpt-", "gpt-", "bert"]
    assert [(scheduler.name, str(error)) for scheduler, error in listing.failures] == [("other", "the other is down.")]
    assert pick("bert", [other, fake]).scheduler is fake
    with pytest.raises(UsageError, match=r"is called 'nothing'.* other did not answer: the other is down\."):
        pick("nothing", [other, fake])
    fake.broken = ShardyardError("and so is this one.")
    with pytest.raises(ShardyardError, match="the other is down"):
        list_jobs([other, fake], ended=False)
    with pytest.raises(ShardyardError, match="and so is this one"):
        list_jobs([fake], ended=False)


def test_a_scheduler_that_hangs_is_not_waited_for(fake: FakeScheduler) -> None:
    other = OtherScheduler()
    other.hang = threading.Event()
    try:
        listing = list_jobs([other, fake], ended=True, seconds=0.2)
    finally:
        other.hang.set()
    assert len(listing.jobs) == 3
    assert [str(error) for _, error in listing.failures] == ["no answer in 0.2 s."]


def test_schedulers_are_asked_at_once() -> None:
    """Each waits until the other has been asked: one after the other would never end."""
    both = threading.Barrier(2)
    answers = ask_all([FakeScheduler(), OtherScheduler()], lambda scheduler: both.wait(30) >= 0)
    assert [answer for _, answer in answers.found] == [True, True]


@pytest.mark.parametrize(
    ("state", "code", "expected"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 124, 124),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
        ("SUCCEEDED", None, 0),
    ],
)
def test_exit_codes_without_a_run_folder(state: JobState, code: int | None, expected: int) -> None:
    assert exit_code_of(_status(state, code), None) == expected


def _status(state: JobState, code: int | None = None) -> JobStatus:
    return JobStatus(JobHandle("fake", "a"), "a", state, exit_code=code)


def _run(tmp_path: Path, **fields: Any) -> RunFolder:
    return RunFolder.create(tmp_path, "tiny", "", "", total_steps=500, **fields)


def test_a_stopped_job_has_the_code_of_its_run_folder(tmp_path: Path) -> None:
    folder = _run(tmp_path)
    folder.update(state="preempted", exit_code=143)
    assert exit_code_of(_status("STOPPED"), folder) == 143
    folder.update(state="running", exit_code=None)
    assert exit_code_of(_status("STOPPED"), folder) in (1, 130)


def test_a_plain_run_is_found_without_a_scheduler(tmp_path: Path, only: FakeScheduler) -> None:
    only.broken = ShardyardError("nobody is to ask.")
    folder = _run(tmp_path)
    found = find(folder.id[:8], tmp_path)
    assert (found.job, found.folder, found.ended) == (None, folder, False)
    folder.update(state="interrupted")
    assert (found.ended, found.exit_code) == (True, 130)


@pytest.mark.parametrize(
    ("job_state", "state", "driver", "is_job"),
    [
        ("STOPPED", "running", {}, False),  # resumed here: this process drives it
        ("STOPPED", "interrupted", {}, True),
        ("RUNNING", "running", {}, True),
        ("FAILED", "running", {"driver": {"host": "elsewhere", "pid": 1}}, True),  # its node died, and cannot tell
    ],
)
def test_a_run_that_was_resumed_after_its_job_ended_is_the_run(
    tmp_path: Path, only: FakeScheduler, job_state: JobState, state: str, driver: dict[str, Any], is_job: bool
) -> None:
    run = RunFolder.create(tmp_path, "gpt", "a", "b")
    handle = only.add(run.id, folder=run.path)
    run.update(state=state, job={"scheduler": "fake", "id": handle.id})
    run.update(**driver)
    only.jobs[handle.id] = replace(only.jobs[handle.id], state=job_state)
    found = find(run.id, tmp_path)
    assert (found.job is not None) == is_job
    if not is_job:
        assert not found.ended
        found.stop()
        assert run.stop_requested() == "interrupt"


def test_a_run_whose_scheduler_is_gone_is_still_a_run(tmp_path: Path, only: FakeScheduler) -> None:
    run = _run(tmp_path, job={"scheduler": "fake", "id": "forgotten"})
    assert find(run.id, tmp_path).job is None
    with pytest.raises(UsageError, match="no job 'forgotten'"):
        find(run.id, tmp_path, on="fake")


@pytest.fixture(autouse=True)
def _no_schedulers_of_this_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine is asked."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "KUBECONFIG", "SLURM_CONF", "SLURM_CONF_SERVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHARDYARD_HOME", str(tmp_path / "home"))


def test_what_is_not_named_means_what_this_host_is_set_up_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [scheduler.name for scheduler in registry.chosen()] == ["ray"]
    (tmp_path / "squeue").touch(mode=0o755)
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    assert [scheduler.name for scheduler in registry.chosen()] == ["slurm"]
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    (tmp_path / ".kube").mkdir()
    (tmp_path / ".kube" / "config").touch()
    monkeypatch.setattr("shardyard.launch.schedulers.kuberay.api.find_spec", lambda name: object())
    assert [scheduler.name for scheduler in registry.chosen()] == ["ray", "slurm", "kuberay"]
    assert [(one.name, one.address) for one in registry.chosen("kuberay", "a-context")] == [("kuberay", "a-context")]
    assert [(one.name, one.address) for one in registry.chosen(None, "http://head")] == [("ray", "http://head")]


def test_schedulers_are_registered_once() -> None:
    try:
        registry.register("fake", FakeScheduler)
        registry.register("fake", FakeScheduler)
        assert isinstance(registry.create("fake", "there"), FakeScheduler)
        with pytest.raises(UsageError, match="a scheduler 'fake' exists already"):
            registry.register("fake", OtherScheduler)
        with pytest.raises(UsageError, match="a scheduler 'ray' exists already"):
            registry.register("ray", OtherScheduler)
    finally:
        registry.unregister("fake")
    registry.register("by-name", "support.schedulers.fake:FakeScheduler")
    registry.register("broken", "support.schedulers.fake:Nothing")
    try:
        assert isinstance(registry.create("by-name"), FakeScheduler)
        with pytest.raises(UsageError, match=r"support.schedulers.fake has no 'Nothing'"):
            registry.create("broken")
    finally:
        registry.unregister("by-name")
        registry.unregister("broken")
    with pytest.raises(UsageError, match="there is no scheduler 'slrm'; there are ray, slurm, kuberay; did you mean"):
        registry.create("slrm")


def test_a_job_whose_folder_is_elsewhere_has_none(tmp_path: Path, fake: FakeScheduler) -> None:
    job = fake.jobs[fake.add("far-1", folder=tmp_path / "far-1").id]
    assert Job(fake, job).folder is None


def test_schedulers_of_installed_packages_are_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("theirs", "support.schedulers.fake:FakeScheduler", "shardyard.schedulers")
    monkeypatch.setattr(plugins, "_entry_points", lambda group: (point,) if group == point.group else ())
    assert registry.names() == ("ray", "slurm", "kuberay", "theirs")
    assert isinstance(registry.create("theirs"), FakeScheduler)
    assert isinstance(registry.create("support.schedulers.fake:FakeScheduler"), FakeScheduler)
    with pytest.raises(UsageError, match=r"support.schedulers.fake:replace is not a scheduler"):
        registry.create("support.schedulers.fake:replace")
    same = EntryPoint("slurm", "support.schedulers.fake:FakeScheduler", "shardyard.schedulers")
    monkeypatch.setattr(plugins, "_entry_points", lambda group: (same,))
    with pytest.raises(UsageError, match=r"provides 'slurm' as one of shardyard.schedulers, a name that"):
        registry.names()
