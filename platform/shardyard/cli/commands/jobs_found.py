"""Finding a job or a run by what a person calls it, and what can be said of it from Ray and from its run folder."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardyard.cli.view.progress import number
from shardyard.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    RunFolderError,
    ShardyardError,
    UsageError,
)
from shardyard.launch.schedulers.ray.api import TERMINAL, JobsApi
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.holder import sees
from shardyard.tracking.run.summary import summarize

_EXIT_OF_STATE = {
    "finished": EXIT_DONE,
    "interrupted": EXIT_INTERRUPTED,
    "preempted": EXIT_PREEMPTED,
    "failed": EXIT_FAILED,
    "lost": EXIT_FAILED,
}
# A line of the log for people: `  120/500   1.9312 …`.
_STEP_LINE = re.compile(r"^\s*(\d+/\d+)\s+([0-9.]+)\s")


@dataclass(frozen=True)
class JobHandle:
    """What a name stands for: a job and its cluster, a run folder that can be read here, or both."""

    job: dict[str, Any] | None
    api: JobsApi | None
    folder: RunFolder | None

    @property
    def id(self) -> str:
        """The id, of the job or of the run; they are the same."""
        if self.job is not None:
            return str(self.job["submission_id"])
        assert self.folder is not None
        return self.folder.id

    def refreshed(self) -> JobHandle:
        """The same, as it is now."""
        if self.job is None or self.api is None:
            return self
        return JobHandle(self.api.job(self.id), self.api, self.folder or folder_of(self.job))

    @property
    def state(self) -> str:
        """Ray's word for a job, that of the run folder for a run that is none."""
        if self.job is not None:
            return str(self.job["status"])
        assert self.folder is not None
        return summarize(self.folder).state

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen by itself."""
        return self.state in TERMINAL if self.job is not None else self.state not in ("pending", "running")

    @property
    def exit_code(self) -> int:
        """Exit code of what has ended."""
        if self.job is not None:
            return exit_code_of(self.job, self.folder)
        return _EXIT_OF_STATE.get(self.state, EXIT_FAILED) if self.folder is None else _exit_code_in(self.folder)

    @property
    def log_name(self) -> str:
        """File in the folder logs/ that has what the whole run said."""
        return "driver.log"

    def stop(self) -> None:
        """Ask it to end, with a checkpoint.

        Raises:
            ShardyardError: it cannot be asked.
        """
        if self.job is not None and self.api is not None:
            self.api.stop(self.id)
        elif self.folder is not None:
            self.folder.request_stop("interrupt")

    def facts(self) -> dict[str, Any]:
        """What the scheduler of a run without a Ray job adds."""
        return {}


def find(name: str, address: str | None, runs_dir: Path) -> JobHandle:
    """The job or run that has this id, unique beginning of an id, or path; `latest` is the one submitted last.

    Raises:
        ShardyardError: there is none, or more than one.
    """
    from shardyard.cli.commands.jobs_slurm import find_in_slurm
    from shardyard.launch.schedulers.ray.jobs import connect

    folder, problem = _folder(name, runs_dir)
    if address is None and (there := find_in_slurm(name, folder)) is not None:
        return there
    known = (folder.info().get("job") or {}) if folder is not None else {}
    if folder is not None and "submission_id" not in known and (name != "latest" or address is None):
        return JobHandle(None, None, folder)
    try:
        api = connect(address or known.get("address"))
        job = pick(own(api.jobs()), known.get("submission_id", name), api.cluster.url)
    except ShardyardError as error:
        if folder is not None and address is None:
            return JobHandle(None, None, folder)  # the cluster is gone, or started anew; its run is still there
        if problem is not None and isinstance(error, UsageError):
            raise UsageError(f"{error} {problem}") from error
        raise
    found = JobHandle(job, api, folder_of(job) or folder)
    # Resumed on this machine after its job had ended: what goes on is the run alone.
    return JobHandle(None, None, found.folder) if found.ended and _is_driven_here(found.folder) else found


def _is_driven_here(folder: RunFolder | None) -> bool:
    return folder is not None and summarize(folder).state == "running" and sees(folder.info().get("driver") or {})


def own(jobs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The jobs that Shardyard submitted."""
    return [job for job in jobs if "shardyard_run" in (job.get("metadata") or {})]


def pick(jobs: Sequence[dict[str, Any]], name: str, where: str) -> dict[str, Any]:
    """The job with this id, unique beginning of one, or name; `jobs` are in the order of submission.

    Raises:
        UsageError: there is none, or more than one.
    """
    if name == "latest" and jobs:
        return jobs[-1]
    ids = [str(job["submission_id"]) for job in jobs]
    matches = [job for job in jobs if job["submission_id"] == name]
    matches = matches or [job for job in jobs if str(job["submission_id"]).startswith(name)]
    matches = matches or [job for job in jobs if job["metadata"].get("job_name") == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        shown = ", ".join(str(job["submission_id"]) for job in matches[:5]) + (", …" if len(matches) > 5 else "")
        raise UsageError(f"{name!r} may be any of {len(matches)} jobs at {where}: {shown}. Give more of the id.")
    if not ids:
        raise UsageError(f"There are no jobs of Shardyard at {where}; `shardyard submit RECIPE` starts one.")
    near = difflib.get_close_matches(name, ids, n=3, cutoff=0.3) or ids[-3:]
    raise UsageError(
        f"No job at {where} is called {name!r}. Nearest: {', '.join(near)}. "
        f"`shardyard ps --all --address {where}` lists all."
    )


def folder_of(job: dict[str, Any]) -> RunFolder | None:
    """The run folder of a job, where this machine can read it."""
    path = Path((job.get("metadata") or {}).get("shardyard_run_folder") or "/nowhere")
    try:
        return RunFolder(path) if (path / "run.json").is_file() else None
    except OSError:
        return None


def exit_code_of(job: dict[str, Any], folder: RunFolder | None) -> int:
    """Exit code of an ended job. Ray keeps none of one that was stopped; its run folder does."""
    if job.get("driver_exit_code") is not None:
        return int(job["driver_exit_code"])
    if job["status"] == "STOPPED":
        code = _exit_code_in(folder) if folder is not None else EXIT_INTERRUPTED
        return EXIT_INTERRUPTED if code == EXIT_FAILED else code
    return EXIT_DONE if job["status"] == "SUCCEEDED" else EXIT_FAILED


def doing(job: dict[str, Any], folder: RunFolder | None, log: str | None = None) -> str:
    """What a job does, or how it ended, in a few words; `log` is asked where its run folder cannot be read."""
    status = job["status"]
    if status == "PENDING":
        return "Ray prepares it"
    if status == "RUNNING":
        said = in_folder(folder) if folder is not None else _from_log(log or "")
        return said or "starting"
    code = exit_code_of(job, folder)
    return f"exit code {code}" + (f", {at}" if (at := in_folder(folder, ended=True)) else "")


def in_folder(folder: RunFolder | None, *, ended: bool = False) -> str:
    """Where a run stands, in a few words; "" where nothing is known."""
    if folder is None:
        return ""
    try:
        info, summary = folder.info(), summarize(folder)
    except (ShardyardError, OSError):
        return ""
    if info.get("waiting") and not ended:
        return str(info["waiting"])
    if not summary.step:
        return ""
    loss = f", loss {number(summary.loss)}" if summary.loss is not None else ""
    return f"step {summary.step}/{summary.total_steps}{loss}"


def age_seconds(job: dict[str, Any], now: float | None = None) -> float:
    """Seconds since a job was submitted."""
    return max(0.0, (time.time() if now is None else now) - (job.get("start_time") or 0) / 1000)


def _from_log(log: str) -> str:
    for line in reversed(log.splitlines()[-50:]):
        if "waiting: " in line or "waiting for resources: " in line:
            return line.removeprefix("* ").strip()
        if found := _STEP_LINE.match(line):
            return f"step {found[1]}, loss {found[2]}"
    return ""


def _exit_code_in(folder: RunFolder) -> int:
    info = folder.info()
    code = info.get("exit_code")
    return int(code) if code is not None else _EXIT_OF_STATE.get(summarize(folder).state, EXIT_FAILED)


def _folder(name: str, runs_dir: Path) -> tuple[RunFolder | None, str | None]:
    try:
        return RunFolder.open(runs_dir, name), None
    except RunFolderError as error:
        return None, str(error)
