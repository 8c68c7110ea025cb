"""Jobs of any scheduler as text: a line of `shardyard ps`, the state of a job, and its details."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shardyard.errors import ShardyardError
from shardyard.launch.describe import number, wait_in_words
from shardyard.launch.jobs.progress import JobProgress, newest_progress
from shardyard.launch.run.progress import rounded_seconds
from shardyard.tracking.files import encode
from shardyard.tracking.run.summary import summarize

if TYPE_CHECKING:
    from shardyard.launch.schedulers.base import JobStatus
    from shardyard.launch.schedulers.lookup import Job, JobOrRun

COLUMNS = ("job", "name", "state", "doing", "age", "tags", "on")
# The end of a log that is searched for the newest progress record.
_LAST_LINES = 100


def row(job: Job) -> tuple[str, ...]:
    """A line of `shardyard ps`."""
    status = job.status
    age = rounded_seconds(age_seconds(status)) or "-"
    return (shown_id(job), status.name, status.state, doing(job), age, ",".join(status.tags), job.scheduler.name)


def shown_id(job: Job) -> str:
    """The run id if the run folder is on this host, so that every command accepts it; else the job id."""
    return job.folder.id if job.folder is not None else job.status.job.id


def doing(job: Job) -> str:
    """A short text: the activity of a job, what it waits for, or how it ended."""
    return _doing(job, progress_of(job))


def _doing(job: Job, progress: JobProgress | None) -> str:
    from shardyard.launch.schedulers.lookup import exit_code_of

    status, folder = job.status, job.folder
    if status.state == "PENDING":
        return status.reason
    if status.state == "RUNNING":
        return _in_words(progress) or "starting"
    at = _step_in_words(progress)
    return f"exit code {exit_code_of(status, folder)}" + (f", {at}" if at else "")


def progress_of(job: Job) -> JobProgress | None:
    """The progress of a job: from its run folder if readable here, else from the records in the log of a running job;
    None if neither has it."""
    if (folder := job.folder) is not None:
        try:
            info, summary = folder.info(), summarize(folder)
        except (ShardyardError, OSError):
            return None
        return JobProgress(summary.step, summary.total_steps, summary.loss, info.waiting)
    if job.status.state != "RUNNING":
        return None
    log = ""
    with suppress(ShardyardError):
        log = "".join(job.scheduler.logs(job.status.job, lines=_LAST_LINES))
    return newest_progress(log)


def _in_words(progress: JobProgress | None) -> str:
    if progress is not None and progress.waiting is not None:
        return wait_in_words(progress.waiting)
    return _step_in_words(progress)


def _step_in_words(progress: JobProgress | None) -> str:
    if progress is None or not progress.step:
        return ""
    loss = f", loss {number(progress.loss)}" if progress.loss is not None else ""
    return f"step {progress.step}/{progress.total_steps}{loss}"


def age_seconds(status: JobStatus, now: float | None = None) -> float | None:
    """Seconds since a job was submitted; None if the scheduler does not report it."""
    if status.submitted is None:
        return None
    return max(0.0, (time.time() if now is None else now) - status.submitted)


def fields(found: JobOrRun) -> dict[str, object]:
    """A job or a run as plain data, for JSON."""
    if found.job is not None:
        return job_fields(found.job)
    assert found.folder is not None
    code = found.exit_code if found.ended else None
    return {"id": found.id, "state": found.state, "exit_code": code, "run_folder": str(found.folder.path)}


def job_fields(job: Job) -> dict[str, object]:
    """A job as plain data, for JSON."""
    from shardyard.launch.schedulers.lookup import exit_code_of

    status, age, progress = job.status, age_seconds(job.status), progress_of(job)
    return {
        "id": shown_id(job),
        "scheduler": job.scheduler.name,
        "job_id": status.job.id,
        "run_id": status.job.run_id or None,
        "name": status.name,
        "state": status.state,
        "scheduler_state": status.native_state,
        "doing": _doing(job, progress),
        "progress": json.loads(encode(progress.as_json())) if progress is not None else None,
        "exit_code": exit_code_of(status, job.folder) if status.ended else None,
        "needs": status.needs or None,
        "resources": asdict(status.resources),
        "recipe": status.recipe or None,
        "tags": list(status.tags),
        "submitted": _moment(status.submitted),
        "started": _moment(status.started),
        "ended": _moment(status.ended_at),
        "age_seconds": round(age, 1) if age is not None else None,
        "run_folder": str(status.job.run_folder) if status.job.run_folder is not None else None,
        "address": status.job.address,
        "message": status.reason or None,
    }


def lines(known: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """The details as rows of a table."""
    for name, value in known.items():
        if isinstance(value, dict):
            value = [f"{amount:g} {what}" for what, amount in value.items() if amount]
        if value not in (None, "", []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield name.replace("_", " "), text


def _moment(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None
