"""Slurm as a scheduler: each job is a batch script that starts a Ray cluster on its allocated nodes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from shardyard.errors import EXIT_DONE, EXIT_INTERRUPTED, RunFolderError, UsageError
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
from shardyard.launch.schedulers.slurm import jobs
from shardyard.tracking.run.folder import RunFolder

LOG = "slurm.log"
# A host of a Slurm cluster has one of these; without slurm.conf it fetches the file, authenticated by munge.
_SIGNS = ("/etc/slurm/slurm.conf", "/etc/slurm-llnl/slurm.conf", "/run/slurm/conf", "/run/munge/munge.socket.2")
_STATES: dict[str, JobState] = {
    "PENDING": "PENDING",
    "CONFIGURING": "PENDING",
    "REQUEUED": "PENDING",
    "REQUEUE_HOLD": "PENDING",
    "SPECIAL_EXIT": "PENDING",
    "COMPLETED": "SUCCEEDED",
    "CANCELLED": "STOPPED",
}
# State in the run folder → state of an ended job that Slurm has forgotten.
_RUN_STATES: dict[str, JobState] = {
    "finished": "SUCCEEDED",
    "interrupted": "STOPPED",
    "preempted": "STOPPED",
    "failed": "FAILED",
}


class SlurmScheduler(Scheduler):
    """The Slurm of this host; run folders are on storage shared by its nodes."""

    name = "slurm"
    files = "share"
    poll_seconds = jobs.POLL_SECONDS

    @classmethod
    def is_configured(cls) -> bool:
        """Whether its commands are installed and configured for a cluster; a package may install only the commands."""
        named = any(os.environ.get(name) for name in ("SLURM_CONF", "SLURM_CONF_SERVER"))
        return shutil.which("squeue") is not None and (named or any(Path(path).exists() for path in _SIGNS))

    @classmethod
    def recorded_in(cls, folder: RunFolder) -> JobHandle | None:
        """The job of a run; its Slurm id is recorded at submission."""
        number = folder.info().job.get("slurm_job_id")
        return None if number is None else JobHandle(cls.name, str(number), folder.id, folder.path)

    @property
    def where(self) -> str:
        """Always "Slurm": a host has only one."""
        return "Slurm"

    def submit(self, request: SubmitRequest, report: Report) -> JobHandle | None:
        """Submit with sbatch."""
        job_id = jobs.submit(request, report)
        return self.status(JobHandle(self.name, job_id)).job if job_id else None

    def list(self, *, ended: bool = False) -> Sequence[JobStatus]:
        """The jobs that squeue still shows."""
        return [self._status(job) for job in jobs.jobs() if ended or not job.ended]

    def status(self, job: JobHandle) -> JobStatus:
        """The status from Slurm, or from the run folder if Slurm has forgotten the job."""
        found = jobs.state(job.id) if job.id.isdecimal() else None
        if found is not None and found.run is not None and job.run_folder in (None, found.run):
            return self._status(found)
        if job.run_folder is not None and (remembered := _remembered(job, RunFolder(job.run_folder))) is not None:
            return remembered
        raise JobNotFoundError(f"Slurm knows no job {job.id!r} of Shardyard; `squeue --me` lists what it runs.")

    def logs(self, job: JobHandle, *, follow: bool = False, lines: int | None = None) -> Iterator[str]:
        """The output file of the batch script, in the run folder."""
        known = self.status(job).job
        assert known.run_folder is not None, "a job of Shardyard has one"
        path = known.run_folder / "logs" / LOG

        def read() -> str:
            return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

        if follow:
            return self.follow_text(known, read, lines)
        if not path.is_file():
            raise UsageError(f"{path} is not there yet, or not on this machine; try -f.")
        return iter([tail(read(), lines)])

    def stop(self, job: JobHandle) -> None:
        """Stop a training run through its folder, with a checkpoint; before training, cancel the job."""
        found = self.status(job)
        if found.ended:
            return
        folder = RunFolder(found.job.run_folder) if found.job.run_folder is not None else None
        state = folder.state if folder is not None and folder.info_file.is_file() else None
        if found.state == "RUNNING" and state == "running":
            assert folder is not None
            folder.request_stop("interrupt")
            return
        jobs.cancel(found.job.id)
        if folder is not None and state == "pending":
            folder.update(state="interrupted", exit_code=EXIT_INTERRUPTED)

    def capacity(self) -> Capacity:
        """The nodes listed by sinfo."""
        return Capacity(tuple(jobs.nodes()))

    def _status(self, job: jobs.SlurmJob) -> JobStatus:
        state = _STATES.get(job.state, "FAILED" if job.ended else "RUNNING")
        code = job.exit_code
        if state == "STOPPED" and code == EXIT_DONE:
            code = EXIT_INTERRUPTED  # cancelled before its script began
        return JobStatus(
            job=JobHandle(self.name, job.id, job.run.name if job.run is not None else "", job.run),
            name=job.name,
            state=_as_stopped(state, code),
            native_state=job.state,
            reason=f"Slurm: {job.reason}" if state == "PENDING" else "",
            exit_code=code,
            submitted=job.submitted,
            started=job.started,
            ended_at=job.ended_at,
            resources=Resources(job.nodes, job.cpus, job.gpus),
            tags=_tags(job),
        )


def _remembered(job: JobHandle, folder: RunFolder) -> JobStatus | None:
    """The final status of a run from its folder; None if it has not ended or cannot be read."""
    with suppress(RunFolderError):
        info = folder.info()
        state = _RUN_STATES.get(info.state)
        name = str(info.job.get("name") or folder.id)
        if state is not None:
            return JobStatus(job, name, state, info.state, "Slurm has forgotten it", info.exit_code)
    return None


def _as_stopped(state: JobState, code: int | None) -> JobState:
    """Correct the state of a run that a person stopped through its folder: Slurm reports its exit code as FAILED."""
    return "STOPPED" if state == "FAILED" and code == EXIT_INTERRUPTED else state


def _tags(job: jobs.SlurmJob) -> tuple[str, ...]:
    """The tags of a job, from its run folder if readable: Slurm does not store them."""
    with suppress(RunFolderError, OSError):
        if job.run is not None:
            return tuple(map(str, RunFolder(job.run).info().job.get("tags") or ()))
    return ()
