"""`shardyard ps`, `logs`, `stop`, `wait` and `inspect`: jobs of every scheduler, and runs that are not jobs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.options import Address, AsJson, OnScheduler, Quiet, RunsDir
from shardyard.cli.view import complete, output
from shardyard.cli.view import jobs as view
from shardyard.errors import EXIT_FAILED, EXIT_TIMEOUT
from shardyard.launch.jobs.progress import without_records
from shardyard.tracking.files import encode
from shardyard.tracking.run.folder import runs_folder, typed
from shardyard.tracking.run.info import RunInfo

if TYPE_CHECKING:
    from shardyard.launch.schedulers.lookup import JobOrRun

JobName = Annotated[
    str,
    typer.Argument(
        metavar="JOB",
        autocompletion=complete.run_ids,
        help="Id of a job or run, a unique beginning of it, or `latest`.",
    ),
]


def ps(
    show_all: Annotated[bool, typer.Option("--all", "-a", help="Include ended jobs.")] = False,
    address: Address = None,
    on: OnScheduler = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List the jobs of all schedulers configured on this host, newest first."""
    from shardyard.launch.schedulers.lookup import list_jobs
    from shardyard.launch.schedulers.registry import chosen

    schedulers = chosen(on, address)
    listing = list_jobs(schedulers, ended=show_all)
    for scheduler, error in listing.failures:
        output.note(f"warning: jobs of {scheduler.name} are not shown: {' '.join(str(error).split())}")
    listed = list(reversed(listing.jobs))
    if quiet:
        for job in listed:
            output.line(view.shown_id(job))
    elif as_json:
        output.print_json([view.job_fields(job) for job in listed])
    elif not listed:
        silent = {scheduler.name for scheduler, _ in listing.failures}
        where = " and ".join(scheduler.where for scheduler in schedulers if scheduler.name not in silent)
        more = "" if show_all else f"; `shardyard ps --all{reach(on, address)}` lists those that have ended"
        output.note(f"No job is waiting or running at {where}{more}.")
    else:
        output.print_table(view.COLUMNS, [view.row(job) for job in listed])


def logs(
    job: JobName,
    follow_log: Annotated[bool, typer.Option("--follow", "-f", help="Follow until it ends.")] = False,
    rank: Annotated[int | None, typer.Option("--rank", metavar="RANK", min=0, help="The log of this rank.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", metavar="N", min=0, help="Only the last lines.")] = None,
    address: Address = None,
    on: OnScheduler = None,
    runs_dir: RunsDir = None,
) -> int:
    """Show the log of a job or run; with -f follow it and exit with its exit code."""
    from shardyard.launch.schedulers.lookup import find

    found = find(job, runs_folder(runs_dir), on=on, address=address)
    file = None if rank is None else f"rank-{rank}.log"
    write(found.logs(follow_log=follow_log, lines=lines, file=file))
    return found.wait().exit_code if follow_log else 0


def stop(
    jobs: Annotated[
        list[str],
        typer.Argument(
            metavar="JOB...", autocompletion=complete.run_ids, help="Ids, unique beginnings of ids, or `latest`."
        ),
    ],
    address: Address = None,
    on: OnScheduler = None,
    runs_dir: RunsDir = None,
) -> int:
    """Stop jobs or runs, each with a checkpoint. Exit code 1: a process had died already."""
    from shardyard.launch.schedulers.lookup import find, lost_in_words

    code = 0
    for found in [find(name, runs_folder(runs_dir), on=on, address=address) for name in jobs]:
        if found.state == "lost":
            output.note(lost_in_words(found))
            code = EXIT_FAILED
            continue
        if found.ended:
            output.note(f"{found.id} has already ended ({found.state}).")
            continue
        found.stop()
        waiting = f"`{_wait_command(found, on, address)}` waits for it"
        output.note(f"{found.id} ends after this step, with a checkpoint; {waiting}.")
    return code


def wait(
    job: JobName,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout", metavar="SECONDS", min=0.0, help="Maximum wait in seconds; then the exit code is 124."
        ),
    ] = None,
    address: Address = None,
    on: OnScheduler = None,
    runs_dir: RunsDir = None,
) -> int:
    """Wait until a job or run ends, and exit with its exit code."""
    from shardyard.launch.schedulers.lookup import find

    found = find(job, runs_folder(runs_dir), on=on, address=address).wait(timeout)
    if not found.ended:
        output.note(f"{found.id} is still {found.state} after {timeout:g} s.")
        return EXIT_TIMEOUT
    output.note(f"{found.id} has ended: {found.state}, exit code {found.exit_code}.")
    return found.exit_code


def inspect(
    job: JobName,
    address: Address = None,
    on: OnScheduler = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the details of a job or run: place, resources, outcome."""
    from shardyard.launch.schedulers.lookup import find

    found = find(job, runs_folder(runs_dir), on=on, address=address)
    fields = view.fields(found)
    if as_json:
        output.print_json(fields | {"run": json.loads(encode(found.folder.info().raw)) if found.folder else None})
        return
    fields.pop("progress", None)  # `doing` contains it as text
    info = found.folder.info() if found.folder is not None else RunInfo()
    fields |= {
        "attempts": info.attempts if found.folder is not None else None,
        "retries": info.job.get("retries"),
        "ranks": info.world_size,
        **{name: info.plan.get(name) for name in ("bundle", "placement", "network")},
    }
    output.print_table(("", ""), list(view.lines(fields)))


def reach(on: str | None, address: str | None) -> str:
    """The options that select the same scheduler again; "" if the environment does."""
    there = f" --on {on}" if on is not None else ""
    return there + (f" --address {shlex.quote(address)}" if address is not None else "")


def write(pieces: Iterable[str]) -> None:
    """Print pieces of a log as they arrive, without progress records."""
    for piece in without_records(pieces):
        sys.stdout.write(piece)
        sys.stdout.flush()


def _wait_command(found: JobOrRun, on: str | None, address: str | None) -> str:
    """The command that waits for a job or run."""
    if found.job is None and found.folder is not None:
        return f"shardyard wait {typed(found.folder.path)}"
    return f"shardyard wait {found.id}{reach(on, address)}"
