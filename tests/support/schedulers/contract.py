"""The contract of schedulers, as checks for any implementation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from shardyard.errors import EXIT_INTERRUPTED
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.schedulers.base import JobHandle, JobNotFoundError, JobStatus, Scheduler
from shardyard.launch.schedulers.lookup import Job, JobOrRun, exit_code_of, find


@dataclass
class Case:
    """A scheduler and the behaviour of its cluster.

    short, endless: requests of jobs that end, and that do not. begin: makes a job run and make progress. finish: makes
    a short job end successfully.
    words: of the log of a short job. folders: whether run folders can be read here.
    """

    scheduler: Scheduler
    short: Callable[[], SubmitRequest]
    endless: Callable[[], SubmitRequest]
    begin: Callable[[JobHandle], None]
    finish: Callable[[JobHandle], None]
    words: str
    folders: bool = True


def check_questions_about_nothing(case: Case, tmp_path: Path) -> None:
    """Unknown jobs raise JobNotFoundError; a dry run submits nothing; the capacity is given or unknown."""
    scheduler = case.scheduler
    before = {job.job.id for job in scheduler.list(ended=True)}
    nobody = JobHandle(scheduler.name, "none-such")
    for ask in (scheduler.status, scheduler.stop, scheduler.wait, lambda job: list(scheduler.logs(job))):
        with pytest.raises(JobNotFoundError, match="none-such"):
            ask(nobody)
    written = tmp_path / "dry-run"
    request = replace(case.short(), dry_run=written)
    scheduler.submit(request, lambda line: None)
    assert written.stat().st_size > 0
    assert {job.job.id for job in scheduler.list(ended=True)} == before
    assert not (request.runs_dir / str(request.run_id)).exists()
    capacity = scheduler.capacity()
    nodes = scheduler.nodes()
    if capacity.nodes is None:
        assert capacity.grows
        assert nodes is None
        return
    assert nodes is not None
    assert {node.id for node in capacity.nodes} <= {node.id for node in nodes if node.up}
    for node in capacity.nodes:
        assert 0 <= node.free.cpus <= node.total.cpus
        assert 0 <= node.free.gpus <= node.total.gpus
    assert sum(node.total.cpus for node in capacity.nodes) > 0


def check_a_job_that_is_stopped(case: Case) -> None:
    """It is known once submitted, can be waited for with a limit, and ends as requested."""
    scheduler, request = case.scheduler, case.endless()
    handle = _submitted(case, request)
    case.begin(handle)
    found = scheduler.wait(handle, timeout=0)
    assert found.state == "RUNNING"
    assert found.exit_code is None
    assert found.ended_at is None
    assert handle.id in _ids(scheduler, ended=False)
    scheduler.stop(handle)
    try:
        ended = scheduler.wait(handle)
    except JobNotFoundError:
        assert handle.id not in _ids(scheduler, ended=True), "it answers for no job that it lists"
        return
    folder = Job(scheduler, ended).folder
    assert (ended.state, exit_code_of(ended, folder)) == ("STOPPED", EXIT_INTERRUPTED)
    assert handle.id not in _ids(scheduler, ended=False)
    scheduler.stop(handle)
    assert scheduler.status(handle).state == "STOPPED"


def check_a_job_that_succeeds(case: Case) -> None:
    """Its log can be followed to the end, and its exit code and times are reported."""
    scheduler, request = case.scheduler, case.short()
    handle = _submitted(case, request)
    case.finish(handle)
    text = "".join(scheduler.logs(handle, follow=True))
    assert case.words in text
    ended = scheduler.wait(handle)
    assert (ended.state, ended.exit_code, ended.ended) == ("SUCCEEDED", 0, True)
    assert ended.submitted is not None
    assert ended.ended_at is not None
    assert ended.submitted <= ended.ended_at + 1.0, "clocks of whole seconds"
    assert handle.id not in _ids(scheduler, ended=False)
    assert handle.id in _ids(scheduler, ended=True)
    last = "".join(scheduler.logs(handle, lines=1))
    assert 0 < len(last) <= len(text)
    assert last.count("\n") <= 1
    if case.folders:
        assert (request.runs_dir / str(request.run_id) / "run.json").is_file()


def _submitted(case: Case, request: SubmitRequest) -> JobHandle:
    """A new job, for which its scheduler needs only the id, and which is found by its run id."""
    scheduler = case.scheduler
    handle = scheduler.submit(request, lambda line: None)
    assert handle is not None
    assert (handle.scheduler, handle.run_id) == (scheduler.name, request.run_id)
    known = scheduler.status(JobHandle(scheduler.name, handle.id))
    assert known.job == handle
    assert handle.run_folder is not None
    assert not known.ended
    assert known.name
    assert known.resources.cpus
    listed = {job.job.id: job for job in scheduler.list()}
    assert listed[handle.id].job == handle
    assert _found(scheduler, handle, request).status.job == handle
    return handle


def _found(scheduler: Scheduler, handle: JobHandle, request: SubmitRequest) -> Job:
    """Find a job like the command line, by the id of its run."""
    found: JobOrRun = find(handle.run_id, request.runs_dir, on=scheduler.name, address=scheduler.address)
    assert found.job is not None
    return found.job


def _ids(scheduler: Scheduler, *, ended: bool) -> set[str]:
    listed: list[JobStatus] = list(scheduler.list(ended=ended))
    assert ended or not any(job.ended for job in listed)
    return {job.job.id for job in listed}
