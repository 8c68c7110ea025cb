"""Jobs of all schedulers together: listing them, and finding one by name."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from shardyard.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    RunFolderError,
    ShardyardError,
    UsageError,
)
from shardyard.launch.schedulers.base import LOG_POLL_SECONDS, JobHandle, JobStatus, Scheduler, follow, tail
from shardyard.launch.schedulers.registry import DEFAULT, chosen, create, names, scheduler_class
from shardyard.tracking.run.folder import RunFolder, typed
from shardyard.tracking.run.holder import sees
from shardyard.tracking.run.summary import summarize

# Time limit of one scheduler while others are queried as well.
ASK_SECONDS = 20.0
_EXIT_OF_STATE = {
    "finished": EXIT_DONE,
    "interrupted": EXIT_INTERRUPTED,
    "preempted": EXIT_PREEMPTED,
    "failed": EXIT_FAILED,
    "lost": EXIT_FAILED,
}
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Answers(Generic[_Answer]):
    """The answers of schedulers and the errors of the others, in the order given."""

    found: tuple[tuple[Scheduler, _Answer], ...]
    failures: tuple[tuple[Scheduler, ShardyardError], ...] = ()


def ask_all(
    schedulers: Sequence[Scheduler], question: Callable[[Scheduler], _Answer], seconds: float = ASK_SECONDS
) -> Answers[_Answer]:
    """Query several schedulers concurrently; a single one is called directly, with its own time limits.

    Raises:
        ShardyardError: none of them answers; contains the first one's reason.
    """
    if len(schedulers) == 1:
        return Answers(((schedulers[0], question(schedulers[0])),))
    found: dict[int, _Answer] = {}
    failed: dict[int, ShardyardError] = {}

    def ask(index: int) -> None:
        try:
            found[index] = question(schedulers[index])
        except ShardyardError as error:
            failed[index] = error

    # Daemon threads: one that hangs delays neither the other answers nor the exit of the process.
    threads = [threading.Thread(target=ask, args=(index,), daemon=True) for index in range(len(schedulers))]
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = ShardyardError(f"no answer in {seconds:g} s.")
    answered = [(scheduler, index) for index, scheduler in enumerate(schedulers) if index in found]
    silent = [(scheduler, index) for index, scheduler in enumerate(schedulers) if index not in found]
    failures = tuple((scheduler, failed.get(index, late)) for scheduler, index in silent)
    if not answered:
        raise failures[0][1]
    return Answers(tuple((scheduler, found[index]) for scheduler, index in answered), failures)


@dataclass(frozen=True)
class Job:
    """A job and its scheduler."""

    scheduler: Scheduler
    status: JobStatus

    @property
    def folder(self) -> RunFolder | None:
        """Its run folder, if this machine can read it."""
        path = self.status.job.run_folder
        try:
            return RunFolder(path) if path is not None and (path / "run.json").is_file() else None
        except OSError:
            return None


@dataclass(frozen=True)
class Listing:
    """Jobs in order of submission; the schedulers that answered, and those that did not."""

    jobs: tuple[Job, ...]
    answered: tuple[Scheduler, ...]
    failures: tuple[tuple[Scheduler, ShardyardError], ...] = ()


def list_jobs(schedulers: Sequence[Scheduler], *, ended: bool, seconds: float = ASK_SECONDS) -> Listing:
    """The jobs of several schedulers.

    Raises:
        ShardyardError: none of them answers.
    """
    answers = ask_all(schedulers, lambda scheduler: scheduler.list(ended=ended), seconds)
    jobs = [Job(scheduler, status) for scheduler, listed in answers.found for status in listed]
    jobs.sort(key=lambda job: (job.status.submitted or 0.0, job.status.job.id))
    return Listing(tuple(jobs), tuple(scheduler for scheduler, _ in answers.found), answers.failures)


@dataclass(frozen=True)
class JobOrRun:
    """The result of a lookup: a job, a readable run folder, or both."""

    job: Job | None
    folder: RunFolder | None

    @property
    def id(self) -> str:
        """The id of the run if its folder is on this host, so that every command accepts it; else the job's id."""
        if self.folder is not None:
            return self.folder.id
        assert self.job is not None
        return self.job.status.job.id

    @property
    def state(self) -> str:
        """The state of the job, or of the run if there is no job."""
        if self.job is not None:
            return self.job.status.state
        assert self.folder is not None
        return summarize(self.folder).state

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.job.status.ended if self.job is not None else self.state not in ("pending", "running")

    @property
    def exit_code(self) -> int:
        """Exit code, once it has ended."""
        if self.job is not None:
            return exit_code_of(self.job.status, self.folder)
        assert self.folder is not None
        return _exit_code_in(self.folder)

    def stop(self) -> None:
        """Stop it with a checkpoint.

        Raises:
            ShardyardError: the request failed.
        """
        if self.job is not None:
            self.job.scheduler.stop(self.job.status.job)
        elif self.folder is not None:
            self.folder.request_stop("interrupt")

    def wait(self, timeout: float | None = None) -> JobOrRun:
        """Wait until it has ended, or for `timeout` seconds; returns its new state.

        Raises:
            ShardyardError: its scheduler does not answer for too long.
        """
        if self.job is not None:
            status = self.job.scheduler.wait(self.job.status.job, timeout)
            job = Job(self.job.scheduler, status)
            return JobOrRun(job, self.folder or job.folder)
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        while not self.ended and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(LOG_POLL_SECONDS, left))
        return self

    def logs(self, *, follow_log: bool = False, lines: int | None = None, file: str | None = None) -> Iterator[str]:
        """Pieces of its output, or of a `file` of its logs such as rank-0.log.

        Raises:
            UsageError: this machine cannot read it.
        """
        if self.job is not None and file is None:
            return self.job.scheduler.logs(self.job.status.job, follow=follow_log, lines=lines)
        path = self._log_folder() / (file or "driver.log")
        if not follow_log and not path.is_file():
            there = ", ".join(sorted(item.name for item in path.parent.glob("*.log")))
            raise UsageError(
                f"{path} does not exist on this machine; " + (f"there is {there}." if there else "try -f.")
            )

        def read() -> str:
            return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

        return follow(read, self._has_ended, lines) if follow_log else iter([tail(read(), lines)])

    def _has_ended(self) -> bool:
        return self.job.scheduler.status(self.job.status.job).ended if self.job is not None else self.ended

    def _log_folder(self) -> Path:
        folder = self.folder.path if self.folder is not None else self.job and self.job.status.job.run_folder
        if not folder:
            raise UsageError(f"the scheduler of {self.id} does not tell where its run folder is.")
        return folder / "logs"


def find(name: str, runs_dir: Path, *, on: str | None = None, address: str | None = None) -> JobOrRun:
    """The job or run with this id, unique beginning of an id, path, or job name; `latest` is the newest one.

    A run in this runs folder that is not a job is found without querying any scheduler.

    Args:
        on, address: the scheduler; see `registry.chosen`.

    Raises:
        ShardyardError: there is none, or more than one.
    """
    folder, problem = _folder(name, runs_dir)
    recorded = _recorded(folder, on, address) if folder is not None else None
    if folder is not None and recorded is None and on is None and (name != "latest" or address is None):
        return JobOrRun(None, folder)
    try:
        job = _status(*recorded) if recorded is not None else pick(name, chosen(on, address))
    except ShardyardError as error:
        if folder is not None and on is None and address is None:
            return JobOrRun(None, folder)  # the cluster is gone or was restarted; the run folder still exists
        if problem is not None and isinstance(error, UsageError):
            raise UsageError(f"{error} {problem}") from error
        raise
    found = JobOrRun(job, job.folder or folder)
    # Resumed on this machine after its job had ended: only the run is active.
    return JobOrRun(None, found.folder) if found.ended and _is_driven_here(found.folder) else found


def lost_in_words(found: JobOrRun) -> str:
    """The error for stopping a lost run, with the command that resumes it."""
    assert found.folder is not None, "only a run can be lost"
    driver, name = found.folder.info().driver, typed(found.folder.path)
    return (
        f"{found.id} cannot be stopped: its process {driver.get('pid')} on {driver.get('host')} is gone; `shardyard "
        f"resume {name}` continues it."
    )


def pick(name: str, schedulers: Sequence[Scheduler], seconds: float = ASK_SECONDS) -> Job:
    """The job of these schedulers with this id, run id, unique beginning of one, or name.

    Raises:
        UsageError: there is none, or more than one.
        ShardyardError: none of the schedulers answers.
    """
    listing = list_jobs(schedulers, ended=True, seconds=seconds)
    jobs, schedulers = listing.jobs, listing.answered
    if name == "latest" and jobs:
        return jobs[-1]
    matches = (_matching(name, jobs) or _known_by_id(name, schedulers)) if name else []
    if len(matches) == 1:
        return matches[0]
    where = " and ".join(scheduler.where for scheduler in schedulers)
    if matches:
        shown = ", ".join(_shown(job, schedulers) for job in matches[:5]) + (", …" if len(matches) > 5 else "")
        raise UsageError(f"{name!r} may be any of {len(matches)} jobs at {where}: {shown}. {_advice(matches)}")
    silent = "".join(f" {scheduler.name} did not answer: {error}" for scheduler, error in listing.failures)
    if not jobs:
        raise UsageError(
            f"There are no jobs of Shardyard at {where}; `shardyard submit RECIPE` starts one.{silent}",
        )
    ids = [job.status.job.id for job in jobs]
    near = difflib.get_close_matches(name, ids, n=3, cutoff=0.3) or ids[-3:]
    raise UsageError(
        f"No job at {where} is called {name!r}. Nearest: {', '.join(near)}. "
        f"`shardyard ps --all{reach(schedulers)}` lists all.{silent}"
    )


def reach(schedulers: Sequence[Scheduler]) -> str:
    """The command-line options that select these; "" for several, which is the default."""
    return schedulers[0].options if len(schedulers) == 1 else ""


def _matching(name: str, jobs: Sequence[Job]) -> list[Job]:
    tests: list[Callable[[JobStatus], bool]] = [
        lambda status: name in (status.job.id, status.job.run_id),
        lambda status: status.job.id.startswith(name) or status.job.run_id.startswith(name),
        lambda status: name == status.name,
    ]
    for test in tests:
        if matches := [job for job in jobs if test(job.status)]:
            return matches
    return []


def _known_by_id(name: str, schedulers: Sequence[Scheduler]) -> list[Job]:
    """Look up a job by id: schedulers may know unlisted jobs, in other namespaces or in accounting."""
    found = []
    for scheduler in schedulers:
        try:
            found.append(Job(scheduler, scheduler.status(JobHandle(scheduler.name, name))))
        except UsageError:
            continue
    return found


def _shown(job: Job, schedulers: Sequence[Scheduler]) -> str:
    return job.status.job.id if len(schedulers) == 1 else f"{job.status.job.id} ({job.scheduler.name})"


def _advice(matches: Sequence[Job]) -> str:
    """How to make the name unambiguous."""
    there = dict.fromkeys(job.scheduler.name for job in matches)
    if len(there) == len(matches) > 1:
        return f"Say which scheduler: --on {', --on '.join(there)}."
    return "Give more characters of the id."


def recorded_job(folder: RunFolder) -> JobHandle | None:
    """The job of a run according to its run.json; None for a run that is not a job."""
    if not folder.info().job:
        return None
    found = (scheduler_class(name).recorded_in(folder) for name in names())
    return next((handle for handle in found if handle is not None), None)


def _recorded(folder: RunFolder, on: str | None, address: str | None) -> tuple[Scheduler, JobHandle] | None:
    """The scheduler and job of a run folder, unless another scheduler was given."""
    if not folder.info().job:
        return None
    for name in names() if on is None and address is None else (on or DEFAULT,):
        handle = scheduler_class(name).recorded_in(folder)
        if handle is not None:
            return create(name, address or handle.address), handle
    return None


def _status(scheduler: Scheduler, handle: JobHandle) -> Job:
    return Job(scheduler, scheduler.status(handle))


def _is_driven_here(folder: RunFolder | None) -> bool:
    return folder is not None and summarize(folder).state == "running" and sees(folder.info().driver)


def exit_code_of(status: JobStatus, folder: RunFolder | None) -> int:
    """Exit code of an ended job: from its scheduler, its run folder, or its state."""
    if status.exit_code is not None:
        return status.exit_code
    if status.state == "STOPPED":
        code = _exit_code_in(folder) if folder is not None else EXIT_INTERRUPTED
        return EXIT_INTERRUPTED if code == EXIT_FAILED else code
    return EXIT_DONE if status.state == "SUCCEEDED" else EXIT_FAILED


def _exit_code_in(folder: RunFolder) -> int:
    code = folder.info().exit_code
    return int(code) if code is not None else _EXIT_OF_STATE.get(summarize(folder).state, EXIT_FAILED)


def _folder(name: str, runs_dir: Path) -> tuple[RunFolder | None, str | None]:
    try:
        return RunFolder.open(runs_dir, name), None
    except RunFolderError as error:
        return None, str(error)
