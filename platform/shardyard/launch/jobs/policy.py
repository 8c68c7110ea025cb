"""The decision after an attempt of a job. Pure, and the same under every scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shardyard.errors import EXIT_FAILED, EXIT_PREEMPTED, EXIT_TIMEOUT
from shardyard.launch.jobs.spec import Policy

FIRST_WAIT_SECONDS = 1.0
LONGEST_WAIT_SECONDS = 60.0
_LONGEST_WAIT_DOUBLINGS = 6

# Exit code of an attempt → the field of `job` that decides, and the reason in words.
_FIELDS: dict[int, tuple[Literal["on_failed", "on_timeout", "on_preempted"], str]] = {
    EXIT_FAILED: ("on_failed", "the run failed"),
    EXIT_TIMEOUT: ("on_timeout", "the time limit was reached"),
    EXIT_PREEMPTED: ("on_preempted", "it was preempted"),
}


@dataclass(frozen=True)
class Again:
    """Run another attempt after `wait_seconds`; `reason` is for the log."""

    wait_seconds: float
    reason: str


@dataclass(frozen=True)
class End:
    """End the job with this exit code; `reason` is for the log, empty if the code is sufficient."""

    exit_code: int
    reason: str = ""


def decide(exit_code: int, policy: Policy, *, retries: int, stopped: bool) -> Again | End:
    """Decide after an attempt that ended with `exit_code`.

    Success, an invalid recipe and an interrupt by a person always end the job.

    Args:
        exit_code: of the attempt; negative if a signal ended its process, which counts as a failed run.
        policy: from `spec.policy_of`.
        retries: the number of automatic retries so far.
        stopped: whether a person or the scheduler stopped the job itself; then it is not retried.
    """
    killed = f", as its process ended by signal {-exit_code}" if exit_code < 0 else ""
    code = EXIT_FAILED if exit_code < 0 else exit_code
    if code not in _FIELDS or stopped:
        return End(code)
    field, what = _FIELDS[code]
    allowed = policy["retries"]
    if policy[field] != "resume":
        return End(code, f"{what}{killed}; job.{field} is end")
    if retries >= allowed:
        return End(code, f"{what}{killed}; job.retries is {allowed}" + (" and used up" if allowed else ""))
    wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** min(retries, _LONGEST_WAIT_DOUBLINGS))
    return Again(wait, f"{what}{killed}; continuing from the newest checkpoint, retry {retries + 1} of {allowed}")
