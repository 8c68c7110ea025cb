"""The entry point of a job: waits in the queue, runs the driver, and applies the recipe's policy to its exit code.

Runs under every scheduler as `python -m shardyard.launch.jobs.entry SPEC`. It imports only the standard library, so a
waiting job takes a few megabytes; Ray and torch come with the driver, a new process for each attempt.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from shardyard.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_TIMEOUT,
    EXIT_USAGE,
    RunFolderError,
    ShardyardError,
)
from shardyard.launch.describe import wait_in_words
from shardyard.launch.jobs import secrets as job_secrets
from shardyard.launch.jobs.order import join, wait_for_earlier
from shardyard.launch.jobs.own_cluster import own_address
from shardyard.launch.jobs.policy import Again, decide
from shardyard.launch.jobs.progress import JobProgress
from shardyard.launch.jobs.spec import SPEC_NAME, JobSpec, read_spec
from shardyard.launch.ray.queue import QueueSlot, queue_folder, slot_path, wait_for_slot
from shardyard.launch.run.create import new_run
from shardyard.tracking.run.folder import RunFolder, StopReason, owner
from shardyard.tracking.run.info import JobInfo, RunFields
from shardyard.tracking.run.waiting import Wait

DRIVER = "shardyard.launch.jobs.driver"
POLL_SECONDS = 0.2
# Time for a step, a checkpoint and the exit of all ranks between the time limit and SIGKILL.
GRACE_SECONDS = 900.0
_CODES: dict[StopReason, int] = {"interrupt": EXIT_INTERRUPTED, "preempt": EXIT_PREEMPTED, "timeout": EXIT_TIMEOUT}
_PR_SET_PDEATHSIG = 1
# Set by Ray for the entry points of its jobs.
_UNDER_RAY = "RAY_JOB_CONFIG_JSON_ENV_VAR"


class Stop:
    """The received stop signal: SIGINT from a person or SIGTERM from the scheduler. The first one counts."""

    def __init__(self) -> None:
        self.reason: StopReason | None = None
        signal.signal(signal.SIGINT, lambda number, frame: self.request("interrupt"))
        signal.signal(signal.SIGTERM, lambda number, frame: self.request("preempt"))

    def request(self, reason: StopReason) -> None:
        self.reason = self.reason or reason

    def requested(self) -> bool:
        return self.reason is not None


def main(arguments: Sequence[str]) -> int:
    """Run the job of a file; returns its exit code."""
    parser = argparse.ArgumentParser(prog="shardyard.launch.jobs.entry", description="Carry out a submitted job.")
    parser.add_argument("spec", type=Path, help="file that `shardyard submit` wrote, or a recipe")
    parser.add_argument("--run-id", default="", help="of a recipe: id of its run")
    parser.add_argument("--runs-dir", default="runs", help="of a recipe: where its run folder goes")
    parser.add_argument(
        "--secrets", metavar="KEY", help="key under which the submitter's environment variables are stored"
    )
    options = parser.parse_args(arguments)
    if _UNDER_RAY in os.environ and (address := own_address()) is not None:
        os.environ["RAY_ADDRESS"] = address
    stop = Stop()
    try:
        path = _spec_of_recipe(options) if options.spec.suffix in (".yaml", ".yml") else options.spec
        spec = read_spec(path)
        folder = run_folder(spec)
    except (OSError, ValueError) as error:
        return _refuse(f"{options.spec} is not a job specification: {error}")
    except ShardyardError as error:
        return _refuse(str(error))
    try:
        return carry_out(spec, path, folder, stop, options.secrets)
    except ShardyardError as error:
        folder.update(state="failed")
        return _refuse(str(error), EXIT_FAILED)


def _spec_of_recipe(options: argparse.Namespace) -> Path:
    """Plan a recipe in a separate process, because planning needs large imports.

    Raises:
        SystemExit: the recipe cannot be planned; that process has printed why.
    """
    path = Path(tempfile.mkdtemp(prefix="shardyard-job-")) / SPEC_NAME
    command = [
        sys.executable,
        "-m",
        DRIVER,
        "--make-spec",
        str(options.spec),
        options.run_id,
        options.runs_dir,
        str(path),
    ]
    code = subprocess.run(command, check=False).returncode
    if code != 0:
        sys.exit(code if code > 0 else EXIT_FAILED)
    return path


def run_folder(spec: JobSpec) -> RunFolder:
    """The run folder of a job: a new one, or the one from an earlier start of the job.

    Raises:
        RunFolderError: it cannot be created.
    """
    runs_dir, run_id = Path(spec["runs_dir"]).expanduser(), spec["run_id"]
    if (runs_dir / run_id / "run.json").is_file():
        folder = RunFolder(runs_dir / run_id)
        folder.update(job={**folder.info().job, **job_of(spec)})
        return folder
    fields: RunFields = {"job": job_of(spec)}
    if trial := spec.get("trial"):
        fields["trial"] = trial
    return new_run(
        runs_dir,
        spec["name"],
        recipe_text=spec["recipe_text"],
        resolved_text=spec["resolved_text"],
        plan=spec["plan"],
        run_id=run_id,
        fields=fields,
    )


def job_of(spec: JobSpec) -> JobInfo:
    """The job section of run.json: scheduler, id and name."""
    known: JobInfo = {"name": spec["job_name"], "submitted": spec["submitted"], "tags": spec.get("tags", [])}
    if scheduler := spec.get("scheduler"):
        known["scheduler"] = scheduler
    if address := spec.get("address"):
        known["submission_id"], known["address"] = spec["run_id"], address
    if number := os.environ.get("SLURM_JOB_ID"):
        known["slurm_job_id"] = number
    return known


def carry_out(spec: JobSpec, path: Path, folder: RunFolder, stop: Stop, secrets: str | None) -> int:
    """Run attempts until the recipe's policy ends the job; returns its exit code.

    Raises:
        ShardyardError: the job cannot join the queue, or its secrets are gone.
    """
    queue = queue_folder()
    place = slot_path(queue, spec["submitted"], spec["run_id"])
    slot = _take(place)
    join(queue, spec["run_id"])
    log(f"run folder {folder.path}")
    environment = job_secrets.receive(secrets) if secrets else {}
    wait_for_earlier(queue, spec.get("after", []), stop.requested)
    while True:
        try:
            if not _wait_for_slot(slot, folder, stop):
                return _stopped_before(folder, stop)
            code = _attempt(spec, path, folder, slot, stop, environment)
        finally:
            slot.give_back()
        _settle(folder, code)
        decision = decide(code, spec["policy"], retries=_retries(folder), stopped=stop.requested())
        if not isinstance(decision, Again):
            if decision.reason:
                log(decision.reason)
            folder.update(exit_code=decision.exit_code, waiting=None)
            return decision.exit_code
        log(decision.reason)
        folder.update(job={**folder.info().job, "retries": _retries(folder) + 1})
        _sleep(decision.wait_seconds, stop)
        slot = _take(place)


def log(text: str) -> None:
    """Write a line to the job's log."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _take(place: Path) -> QueueSlot:
    try:
        return QueueSlot.take(place)
    except OSError as error:
        raise ShardyardError(
            f"{place.parent} cannot be written ({error.strerror}), so this job cannot join the queue; set TMPDIR on "
            "the cluster's head to a folder of its user."
        ) from error


def _wait_for_slot(slot: QueueSlot, folder: RunFolder, stop: Stop) -> bool:
    def report(ahead: int) -> None:
        wait = Wait("queue", jobs_ahead=ahead)
        log(wait_in_words(wait))
        log(JobProgress(waiting=wait).to_line())
        folder.update(waiting=wait)

    return wait_for_slot(slot, stop.requested, report)


def _stopped_before(folder: RunFolder, stop: Stop) -> int:
    assert stop.reason is not None, "only a stop ends the wait early"
    code = _CODES[stop.reason]
    state = "interrupted" if stop.reason == "interrupt" else "preempted"
    folder.update(state=state, exit_code=code, waiting=None)
    log(f"{state} while waiting in the queue")
    return code


def _attempt(
    spec: JobSpec, path: Path, folder: RunFolder, slot: QueueSlot, stop: Stop, environment: dict[str, str]
) -> int:
    """Run the driver to its end; returns its exit code, negative if a signal ended it."""
    folder.update(waiting=None, **owner())
    driver = subprocess.Popen(
        [sys.executable, "-m", DRIVER, str(path), str(folder.path)],
        env={**_driver_environment(spec), **environment, **slot.to_variable()},
        pass_fds=(slot.descriptor,),
        preexec_fn=_end_with_parent,
    )
    limit: float | None = spec["policy"].get("time_limit")
    placed_at: float | None = None
    end_by = float("inf")
    requested: StopReason | None = None
    while driver.poll() is None:
        now = time.monotonic()
        if placed_at is None and not slot.path.exists():
            placed_at = now
        over = limit is not None and placed_at is not None and now - placed_at > limit
        reason: StopReason | None = stop.reason or ("timeout" if over else None)
        if reason is not None and requested is None:
            requested, end_by = reason, now + GRACE_SECONDS
            log(f"{'time limit reached' if reason == 'timeout' else 'requested to stop'}: ending with a checkpoint")
        if requested is not None:
            _insist(folder, requested)
        if now > end_by:
            driver.kill()
        time.sleep(POLL_SECONDS)
    return _CODES[requested] if requested is not None and driver.returncode < 0 else driver.returncode


def _driver_environment(spec: JobSpec) -> dict[str, str]:
    """The environment without the job's runtime environment, which ranks need only for files.

    Ray keeps idle worker processes, but would start new ones for each job with a different runtime environment.
    """
    environment = dict(os.environ)
    if _UNDER_RAY in environment:
        config = json.loads(environment[_UNDER_RAY])
        given = config.get("runtime_env") or {}
        config["runtime_env"] = {"working_dir": given["working_dir"]} if spec.get("working_dir") else {}
        environment[_UNDER_RAY] = json.dumps(config)
    return environment


def _settle(folder: RunFolder, code: int) -> None:
    """Set the final state of a run that a killed driver left in the state `running`."""
    if folder.state in ("pending", "running"):
        states = {EXIT_INTERRUPTED: "interrupted", EXIT_TIMEOUT: "interrupted", EXIT_PREEMPTED: "preempted"}
        folder.update(state=states.get(code, "failed"))


def _insist(folder: RunFolder, reason: StopReason) -> None:
    """Request a stop; repeated, because a starting driver clears earlier requests."""
    with contextlib.suppress(RunFolderError):
        if folder.stop_requested() is None:
            folder.request_stop(reason)


def _end_with_parent() -> None:
    """End the driver with the entry point, on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _retries(folder: RunFolder) -> int:
    return int(folder.info().job.get("retries") or 0)


def _sleep(seconds: float, stop: Stop) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not stop.requested():
        time.sleep(POLL_SECONDS)


def _refuse(message: str, code: int = EXIT_USAGE) -> int:
    sys.stderr.write(f"Error: {message}\n")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
