"""Jobs under Slurm as `shardyard ps`, `logs`, `stop`, `wait` and `inspect` see them."""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shardyard.cli.commands.jobs_found import JobHandle, in_folder
from shardyard.cli.view.progress import whole_seconds
from shardyard.errors import EXIT_INTERRUPTED, ShardyardError
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.summary import summarize

if TYPE_CHECKING:
    from shardyard.launch.schedulers.slurm.jobs import SlurmJob


@dataclass(frozen=True, kw_only=True)
class SlurmFound(JobHandle):
    """A run whose job Slurm knows."""

    slurm: SlurmJob
    asked_at: float = field(default_factory=time.monotonic)

    def refreshed(self) -> JobHandle:
        from shardyard.launch.schedulers.slurm.jobs import POLL_SECONDS, state

        if time.monotonic() - self.asked_at < POLL_SECONDS:
            return self
        job = state(self.slurm.id)
        return JobHandle(None, None, self.folder) if job is None else SlurmFound(None, None, self.folder, slurm=job)

    @property
    def log_name(self) -> str:
        return "slurm.log"

    @property
    def state(self) -> str:
        return self.slurm.state

    @property
    def ended(self) -> bool:
        return self.slurm.ended

    @property
    def exit_code(self) -> int:
        return super().exit_code if self.slurm.exit_code is None else self.slurm.exit_code

    def stop(self) -> None:
        """A run that trains ends with a checkpoint; before, there is nothing to save."""
        from shardyard.launch.schedulers.slurm.jobs import cancel

        assert self.folder is not None, "found by its run folder"
        if self.slurm.state == "RUNNING" and self.folder.state == "running":
            super().stop()
            return
        cancel(self.slurm.id)
        if self.folder.state == "pending":
            self.folder.update(state="interrupted", exit_code=EXIT_INTERRUPTED)

    def facts(self) -> dict[str, Any]:
        """What Slurm adds."""
        return {"slurm_job_id": self.slurm.id, "name": self.slurm.name, "doing": self.doing()}

    def doing(self) -> str:
        """What it does, or waits for, in a few words."""
        if self.slurm.state == "PENDING":
            return f"Slurm: {self.slurm.reason}"
        at = in_folder(self.folder, ended=self.ended)
        if self.ended:
            return f"exit code {self.exit_code}" + (f", {at}" if at else "")
        return at or "starting"

    def row(self) -> tuple[str, ...]:
        """A line of `shardyard ps`."""
        assert self.folder is not None
        summary, job = summarize(self.folder), self.folder.info().get("job") or {}
        age = whole_seconds(summary.age_seconds) or "-"
        return (self.id, self.slurm.name, self.state, self.doing(), age, ",".join(job.get("tags") or []))


def find_in_slurm(name: str, folder: RunFolder | None) -> JobHandle | None:
    """The job of a run, or the one with this number; None where Slurm is not here, does not answer or knows none."""
    number = (folder.info().get("job") or {}).get("slurm_job_id") if folder is not None else name
    if shutil.which("squeue") is None or number is None or not str(number).isdecimal():
        return None
    from shardyard.launch.schedulers.slurm.jobs import of_run, state

    with suppress(ShardyardError):
        job = of_run(folder) if folder is not None else state(name)
        return None if job is None else _found(job)
    return None


def list_in_slurm(*, ended: bool) -> list[SlurmFound]:
    """The jobs of this user, the newest first; with `ended` those that Slurm still remembers, too. [] where Slurm is
    not here or does not answer."""
    if shutil.which("squeue") is None:
        return []
    from shardyard.launch.schedulers.slurm.jobs import jobs

    listed: list[SlurmJob] = []
    with suppress(ShardyardError):
        listed = jobs()
    found = [item for job in listed if (ended or not job.ended) and (item := _found(job)) is not None]
    return sorted(found, key=lambda item: int(item.slurm.id), reverse=True)


def _found(job: SlurmJob) -> SlurmFound | None:
    if job.run is None or not (job.run / "run.json").is_file():
        return None
    return SlurmFound(None, None, RunFolder(job.run), slurm=job)
