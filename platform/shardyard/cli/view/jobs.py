"""Jobs of any scheduler in words: a line of `shardyard ps`, what a job does, and everything about it."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shardyard.errors import ShardyardError
from shardyard.launch.describe import number, wait_in_words
from shardyard.launch.run.progress import rounded_seconds
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.summary import summarize

if TYPE_CHECKING:
    from shardyard.launch.schedulers.base import JobStatus
    from shardyard.launch.schedulers.lookup import Job, JobOrRun

COLUMNS = ("job", "name", "state", "doing", "age", "tags", "on")
# A line of the log for people: `  120/500   1.9312 …`.
_STEP_LINE = re.compile(r"^\s*(\d+/\d+)\s+([0-9.]+)\s")
_LAST_LINES = 50


def row(job: Job) -> tuple[str, ...]:
    """A line of `shardyard ps`."""
    status = job.status
    age = rounded_seconds(age_seconds(status)) or "-"
    return (shown_id(job), status.name, status.state, doing(job), age, ",".join(status.tags), job.scheduler.name)


def shown_id(job: Job) -> str:
    """The id of the run where its folder is here, so that every command takes it; else that of the job."""
    return job.folder.id if job.folder is not None else job.status.job.id


def doing(job: Job) -> str:
    """What a job does, waits for, or how it ended, in a few words."""
    from shardyard.launch.schedulers.lookup import exit_code_of

    status, folder = job.status, job.folder
    if status.state == "PENDING":
        return status.reason
    if status.state == "RUNNING":
        return (in_folder(folder) if folder is not None else _from_log(job)) or "starting"
    at = in_folder(folder, ended=True)
    return f"exit code {exit_code_of(status, folder)}" + (f", {at}" if at else "")


def in_folder(folder: RunFolder | None, *, ended: bool = False) -> str:
    """Where a run stands, in a few words; "" where nothing is known."""
    if folder is None:
        return ""
    try:
        info, summary = folder.info(), summarize(folder)
    except (ShardyardError, OSError):
        return ""
    if info.waiting and not ended:
        return wait_in_words(info.waiting)
    if not summary.step:
        return ""
    loss = f", loss {number(summary.loss)}" if summary.loss is not None else ""
    return f"step {summary.step}/{summary.total_steps}{loss}"


def _from_log(job: Job) -> str:
    """What the end of its log says, for a job whose run folder cannot be read here."""
    log = ""
    with suppress(ShardyardError):
        log = "".join(job.scheduler.logs(job.status.job, lines=_LAST_LINES))
    return last_progress(log)


def last_progress(log: str) -> str:
    """The last that a log says of progress, or of what it waits for; "" where it says neither."""
    for line in reversed(log.splitlines()[-_LAST_LINES:]):
        if "waiting: " in line or "waiting for resources: " in line:
            return line.removeprefix("* ").strip()
        if found := _STEP_LINE.match(line):
            return f"step {found[1]}, loss {found[2]}"
    return ""


def age_seconds(status: JobStatus, now: float | None = None) -> float | None:
    """Seconds since a job was submitted; None where its scheduler does not say."""
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

    status, age = job.status, age_seconds(job.status)
    return {
        "id": shown_id(job),
        "scheduler": job.scheduler.name,
        "job_id": status.job.id,
        "run_id": status.job.run_id or None,
        "name": status.name,
        "state": status.state,
        "scheduler_state": status.native_state,
        "doing": doing(job),
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
    """Rows for people of what is known."""
    for name, value in known.items():
        if isinstance(value, dict):
            value = [f"{amount:g} {what}" for what, amount in value.items() if amount]
        if value not in (None, "", []):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield name.replace("_", " "), text


def _moment(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None
