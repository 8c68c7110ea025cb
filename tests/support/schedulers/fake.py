"""An in-memory scheduler: the test controls the state changes of jobs."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from shardyard.errors import EXIT_DONE, EXIT_INTERRUPTED, ShardyardError, UsageError
from shardyard.launch.jobs.spec import new_run_id
from shardyard.launch.jobs.submission import Report, SubmitRequest
from shardyard.launch.schedulers.base import (
    Capacity,
    JobHandle,
    JobNotFoundError,
    JobState,
    JobStatus,
    Resources,
    Scheduler,
    tail,
)
from shardyard.planning.placement import Amount, Node
from support.waiting import PATIENCE_SECONDS


class FakeScheduler(Scheduler):
    """A passive scheduler; `start`, `write` and `end` simulate its cluster.

    broken: what every question is answered with. hang: no question is answered before it is set.
    """

    name = "fake"
    standing = True
    poll_seconds = 0.01

    def __init__(self, address: str | None = None) -> None:
        super().__init__(address)
        self.jobs: dict[str, JobStatus] = {}
        self.written: dict[str, str] = {}
        self.broken: ShardyardError | None = None
        self.hang: threading.Event | None = None
        self._numbers = itertools.count(1)

    def add(self, run_id: str, *, job_id: str | None = None, folder: Path | None = None, name: str = "") -> JobHandle:
        """Add a waiting job."""
        handle = JobHandle(self.name, job_id or f"job-{next(self._numbers)}", run_id, folder)
        self.jobs[handle.id] = JobStatus(
            handle, name or run_id, "PENDING", "Q", "no room", submitted=time.time(), resources=Resources(1, 2.0, 0.0)
        )
        return handle

    def start(self, job: JobHandle) -> None:
        """Set a job running."""
        self.jobs[job.id] = replace(self.jobs[job.id], state="RUNNING", native_state="R", started=time.time())

    def write(self, job: JobHandle, text: str) -> None:
        """Append to the job's log."""
        self.written[job.id] = self.written.get(job.id, "") + text

    def end(self, job: JobHandle, code: int, state: JobState | None = None) -> None:
        """End a job."""
        state = state or ("SUCCEEDED" if code == EXIT_DONE else "FAILED")
        ended = replace(self.jobs[job.id], state=state, native_state="E", exit_code=code, ended_at=time.time())
        self.jobs[job.id] = ended

    def submit(self, request: SubmitRequest, report: Report) -> JobHandle | None:
        self._ask()
        if request.dry_run is not None:
            request.dry_run.write_text("a job\n", encoding="utf-8")
            return None
        if request.plan.world.size > 8:
            raise UsageError("there are 8 cores; lower cluster.workers.")
        run_id = request.run_id or new_run_id(request.loaded.recipe.name)
        return self.add(run_id, folder=request.runs_dir / run_id, name=request.job_name)

    def list(self, *, ended: bool = False) -> Sequence[JobStatus]:
        self._ask()
        return [job for job in self.jobs.values() if ended or not job.ended]

    def status(self, job: JobHandle) -> JobStatus:
        self._ask()
        if job.id not in self.jobs:
            raise JobNotFoundError(f"there is no job {job.id!r} in memory.")
        return self.jobs[job.id]

    def logs(self, job: JobHandle, *, follow: bool = False, lines: int | None = None) -> Iterator[str]:
        self.status(job)
        if follow:
            return self.follow_text(job, lambda: self.written.get(job.id, ""), lines)
        if job.id not in self.written:
            raise UsageError(f"{job.id} has written nothing yet.")
        return iter([tail(self.written[job.id], lines)])

    def stop(self, job: JobHandle) -> None:
        if not self.status(job).ended:
            self.end(job, EXIT_INTERRUPTED, "STOPPED")

    def capacity(self) -> Capacity:
        self._ask()
        return Capacity((Node("here", Amount(8.0), Amount(8.0)),))

    def _ask(self) -> None:
        if self.hang is not None:
            self.hang.wait(PATIENCE_SECONDS)
        if self.broken is not None:
            raise self.broken
