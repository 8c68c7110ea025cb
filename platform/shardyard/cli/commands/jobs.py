"""`shardyard ps`, `logs`, `stop`, `wait` and `inspect`: jobs on a Ray cluster, and runs that are none."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from shardyard.cli.commands import jobs_kuberay
from shardyard.cli.commands.jobs_found import JobHandle, age_seconds, doing, find, folder_of, own
from shardyard.cli.commands.submit import Address, at_address
from shardyard.cli.options import AsJson, Quiet, RunsDir
from shardyard.cli.view import complete, output
from shardyard.cli.view.progress import whole_seconds
from shardyard.errors import EXIT_FAILED, EXIT_TIMEOUT, ShardyardError, UsageError
from shardyard.launch.schedulers.ray.api import TERMINAL, JobsApi
from shardyard.tracking.files import encode
from shardyard.tracking.run.folder import runs_folder, typed

if TYPE_CHECKING:
    from shardyard.cli.commands.jobs_slurm import SlurmFound

POLL_SECONDS = 1.0
# A head that restarts, or a network that stumbles, does not end the wait for a job.
PATIENCE_SECONDS = 120.0
_Answer = TypeVar("_Answer")
_COLUMNS = ("job", "name", "state", "doing", "age", "tags")

OnKubernetes = Annotated[
    Literal["kuberay"] | None, typer.Option("--on", help="kuberay: jobs of Kubernetes, by the ids that `ps` shows.")
]
JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        autocompletion=complete.run_ids,
        help="Id of a job or run, a unique beginning of it, or `latest`.",
    ),
]


def ps(
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Ended jobs, too.")] = False,
    address: Address = None,
    on: OnKubernetes = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the jobs of a Ray cluster, and of Slurm where it is here, the newest first."""
    from shardyard.cli.commands.jobs_slurm import list_in_slurm
    from shardyard.launch.schedulers.ray.jobs import connect

    if on == "kuberay":
        jobs_kuberay.show(ended=show_all, as_json=as_json, quiet=quiet)
        return
    if address is None and (there := list_in_slurm(ended=show_all)):
        _show_slurm(there, as_json=as_json, quiet=quiet)
        return
    api = connect(address)
    listed = [job for job in reversed(own(api.jobs())) if show_all or job["status"] not in TERMINAL]
    if quiet:
        for job in listed:
            output.line(str(job["submission_id"]))
    elif as_json:
        output.print_json([_facts(JobHandle(job, api, folder_of(job))) for job in listed])
    elif not listed:
        more = "" if show_all else f"; `shardyard ps --all{at_address(address)}` lists those that have ended"
        output.note(f"No job is waiting or running at {api.cluster.url}{more}.")
    else:
        output.print_table(_COLUMNS, [_row(job, api) for job in listed])


def logs(
    job: JobName,
    follow_log: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the end.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", min=0, help="The log of this rank.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=0, help="Only the last lines so far.")] = None,
    address: Address = None,
    on: OnKubernetes = None,
    runs_dir: RunsDir = None,
) -> int:
    """Show what a job or a run wrote; with -f until it ends, and end with its exit code."""
    if on == "kuberay":
        return jobs_kuberay.logs(job, follow=follow_log)
    found = find(job, address, runs_folder(runs_dir))
    if follow_log:
        return follow(found, rank=rank, lines=lines)
    _write(_tail(_reader(found, rank)(), lines))
    return 0


def stop(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB...", autocompletion=complete.run_ids, help="Ids, unique beginnings of ids, or `latest`."
        ),
    ],
    address: Address = None,
    on: OnKubernetes = None,
    runs_dir: RunsDir = None,
) -> int:
    """Ask jobs or runs to end, each with a checkpoint. Exit code 1: the process of one was gone already."""
    if on == "kuberay":
        for name in jobs:
            jobs_kuberay.stop(name)
        return 0
    code = 0
    for found in [find(name, address, runs_folder(runs_dir)) for name in jobs]:
        if found.state == "lost":
            name = typed(found.folder.path) if found.folder is not None else found.id
            output.note(f"{found.id} {_gone_driver(found)}; `shardyard resume {name}` goes on with it.")
            code = EXIT_FAILED
            continue
        if found.ended:
            output.note(f"{found.id} has ended before ({found.state}).")
            continue
        found.stop()
        output.note(f"{found.id} ends after this step, with a checkpoint; `{_wait(found, address)}` waits for it.")
    return code


def _wait(found: JobHandle, address: str | None) -> str:
    """The command that waits for it, with what finds it."""
    if found.job is None and found.folder is not None:
        return f"shardyard wait {typed(found.folder.path)}"
    return f"shardyard wait {found.id}{at_address(address)}"


def _gone_driver(found: JobHandle) -> str:
    """What became of a run that is lost."""
    driver = (found.folder.info().get("driver") or {}) if found.folder is not None else {}
    return f"cannot be stopped: its process {driver.get('pid')} on {driver.get('host')} is gone"


def wait(
    job: JobName,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=0.0, help="Seconds to wait at most; then the exit code is 124.")
    ] = None,
    address: Address = None,
    on: OnKubernetes = None,
    runs_dir: RunsDir = None,
) -> int:
    """Wait until a job or run ends, and end with its exit code."""
    if on == "kuberay":
        return jobs_kuberay.wait(job, timeout)
    found = find(job, address, runs_folder(runs_dir))
    deadline = time.monotonic() + timeout if timeout is not None else None
    while not found.ended:
        left = deadline - time.monotonic() if deadline is not None else POLL_SECONDS
        if left <= 0:
            output.note(f"{found.id} is still {found.state} after {timeout:g} s.")
            return EXIT_TIMEOUT
        time.sleep(min(POLL_SECONDS, left))
        found = patiently(found.refreshed)
    output.note(f"{found.id} has ended: {found.state}, exit code {found.exit_code}.")
    return found.exit_code


def inspect(job: JobName, address: Address = None, runs_dir: RunsDir = None, as_json: AsJson = False) -> None:
    """Show everything about a job or a run: where it is, what it needs, how it ended."""
    found = find(job, address, runs_folder(runs_dir))
    facts = _facts(found)
    if as_json:
        output.print_json(facts | {"run": json.loads(encode(found.folder.info())) if found.folder else None})
        return
    info = found.folder.info() if found.folder is not None else {}
    plan = info.get("plan") or {}
    facts |= {
        "attempts": info.get("attempts"),
        "retries": (info.get("job") or {}).get("retries"),
        "ranks": info.get("world_size"),
        **{name: plan.get(name) for name in ("bundle", "placement", "network")},
    }
    rows = [(name.replace("_", " "), _text(value)) for name, value in facts.items() if value not in (None, "", [])]
    output.print_table(("", ""), rows)


def follow(found: JobHandle, *, rank: int | None = None, lines: int | None = None, shown: bool = True) -> int:
    """Show the log of a job or run as it grows, to its end; returns its exit code."""
    read, seen = _reader(found, rank, wait=True), 0
    while True:
        # Asked before the log is read, so that nothing is missed after the end.
        found = patiently(found.refreshed)
        ended, text = found.ended, patiently(read)
        if shown:
            _write(_tail(text, lines) if not seen else text[seen:])
        seen = max(seen, len(text))
        if ended:
            return found.exit_code
        time.sleep(POLL_SECONDS)


def patiently(ask: Callable[[], _Answer]) -> _Answer:
    """The answer of a cluster, which may be out of reach for a while.

    Raises:
        ShardyardError: it does not answer for too long.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except ShardyardError:
            if time.monotonic() > deadline:
                raise
        time.sleep(POLL_SECONDS)


def _reader(found: JobHandle, rank: int | None, *, wait: bool = False) -> Callable[[], str]:
    """What gives the log so far.

    Raises:
        UsageError: this machine cannot read it.
    """
    if rank is None and found.job is not None and found.api is not None:
        api, job_id = found.api, found.id
        return lambda: api.logs(job_id)
    name = found.log_name if rank is None else f"rank-{rank}.log"
    folder = Path(found.folder.path if found.folder else (found.job or {})["metadata"]["shardyard_run_folder"])
    path = folder / "logs" / name
    if not wait and not path.is_file():
        there = sorted(item.name for item in path.parent.glob("*.log"))
        raise UsageError(
            f"{path} is not there, or not on this machine; " + (f"there is {', '.join(there)}." if there else "try -f.")
        )
    return lambda: path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _show_slurm(listed: Sequence[SlurmFound], *, as_json: bool, quiet: bool) -> None:
    if quiet:
        for found in listed:
            output.line(found.id)
    elif as_json:
        output.print_json([_facts(found) for found in listed])
    else:
        output.print_table(_COLUMNS, [found.row() for found in listed])


def _row(job: dict[str, Any], api: JobsApi) -> tuple[str, ...]:
    metadata, folder = job["metadata"], folder_of(job)
    log = api.logs(job["submission_id"]) if folder is None and job["status"] == "RUNNING" else None
    return (
        str(job["submission_id"]),
        str(metadata.get("job_name", "")),
        str(job["status"]),
        doing(job, folder, log),
        whole_seconds(age_seconds(job)),
        str(metadata.get("shardyard_tags", "")),
    )


def _facts(found: JobHandle) -> dict[str, Any]:
    """A job or run as plain data."""
    job, folder = found.job, found.folder
    if job is None:
        assert folder is not None
        code = found.exit_code if found.ended else None
        return {"id": found.id, "state": found.state, "exit_code": code, "run_folder": str(folder.path)} | found.facts()
    metadata = job["metadata"]
    return {
        "id": found.id,
        "name": metadata.get("job_name"),
        "state": job["status"],
        "doing": doing(job, folder),
        "exit_code": found.exit_code if found.ended else None,
        "needs": metadata.get("shardyard_needs"),
        "recipe": metadata.get("shardyard_recipe"),
        "tags": [tag for tag in metadata.get("shardyard_tags", "").split(",") if tag],
        "submitted": _moment(job.get("start_time")),
        "ended": _moment(job.get("end_time")),
        "age_seconds": round(age_seconds(job), 1),
        "run_folder": metadata.get("shardyard_run_folder"),
        "address": found.api.cluster.url if found.api is not None else None,
        "message": job.get("message"),
    }


def _moment(milliseconds: int | None) -> str | None:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat() if milliseconds else None


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _tail(text: str, lines: int | None) -> str:
    if lines is None:
        return text
    kept = text.splitlines(keepends=True)
    return "".join(kept[len(kept) - min(lines, len(kept)) :])


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
