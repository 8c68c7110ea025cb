"""Jobs that Kubernetes carries out, in the words of `shardyard ps`, `logs`, `stop` and `wait`."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from shardyard.cli.view import output
from shardyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_TIMEOUT
from shardyard.launch.schedulers.ray.api import TERMINAL

POLL_SECONDS = 5.0
_COLUMNS = ("id", "recipe", "state", "message", "run_id")


def show(*, ended: bool, as_json: bool, quiet: bool) -> None:
    """List the jobs in the namespace `default`.

    Raises:
        ShardyardError: Kubernetes does not answer.
    """
    from shardyard.launch.schedulers.kuberay.jobs import jobs

    listed: list[dict[str, Any]] = [asdict(job) for job in jobs() if ended or job.state not in TERMINAL]
    if quiet:
        for job in listed:
            output.line(job["id"])
    elif as_json:
        output.print_json(listed)
    else:
        rows = [[str(job[name] or "") for name in _COLUMNS] for job in listed]
        output.print_table(("job", "recipe", "state", "doing", "run"), rows)


def logs(job_id: str, *, follow: bool) -> int:
    """Show the output of a job; returns its exit code, with `follow`, else 0.

    Raises:
        ShardyardError: there is none.
    """
    from shardyard.launch.schedulers.kuberay.jobs import logs as lines_of

    for line in lines_of(job_id, follow=follow):
        output.line(line)
    return wait(job_id, None) if follow else EXIT_DONE


def stop(job_id: str) -> None:
    """End a job, with a checkpoint where it trains.

    Raises:
        ShardyardError: there is no such job, or Kubernetes does not answer.
    """
    from shardyard.launch.schedulers.kuberay.jobs import cancel

    cancel(job_id)
    output.note(f"{job_id} ends, with a checkpoint where it trains.")


def wait(job_id: str, timeout: float | None) -> int:
    """Wait for the end of a job; returns its exit code, or 124 when that takes longer than `timeout` seconds.

    Raises:
        ShardyardError: there is no such job, or Kubernetes does not answer.
    """
    from shardyard.launch.schedulers.kuberay.jobs import state

    deadline = time.monotonic() + timeout if timeout is not None else float("inf")
    while (job := state(job_id)).state not in TERMINAL:
        left = deadline - time.monotonic()
        if left <= 0:
            return EXIT_TIMEOUT
        time.sleep(min(POLL_SECONDS, left))
    if job.exit_code is not None:
        return job.exit_code
    return EXIT_DONE if job.state == "SUCCEEDED" else EXIT_FAILED
