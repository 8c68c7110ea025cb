"""Calls of the library in a separate process with a time limit."""

# A plan may import torch, build a model and query CUDA for GPUs: gigabytes and state that a server which runs for weeks
# must not keep or be killed by. Planning therefore runs in a separate process, everything else on threads.

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

from shardyard.errors import ShardyardError


class CallTimeoutError(ShardyardError):
    """A call did not end in time."""


def call(
    function: Callable[..., Any],
    *arguments: Any,
    what: str,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call a function of a module in a separate process and return its result. Its output is discarded.

    Args:
        what: names the call in messages. timeout: seconds after which it is killed.
        environment: further variables of the process, set before it imports anything.

    Raises:
        CallTimeoutError: it takes too long.
        ShardyardError: the function raised one, whose text is kept; or its process died.
    """
    command = [sys.executable, "-m", "shardyard.dashboard.web.isolated"]
    request = pickle.dumps((function, arguments))
    variables = {**os.environ, **(environment or {})}
    try:
        done = subprocess.run(
            command, input=request, stdout=subprocess.PIPE, timeout=timeout, check=False, env=variables
        )
    except subprocess.TimeoutExpired as error:
        raise CallTimeoutError(f"{what} has not ended after {timeout:.0f} s.") from error
    if done.returncode != 0 or not done.stdout:
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"exit code {done.returncode}"
        raise ShardyardError(f"{what} ended with {ended} and did not say why.")
    # Trusted: from a child process over a private pipe.
    succeeded, answer = pickle.loads(done.stdout)
    if not succeeded:
        raise ShardyardError(answer)
    return answer


def main() -> int:
    """Run the call read from stdin, and write the answer to stdout."""
    answer = os.fdopen(os.dup(1), "wb")
    # Libraries print while they are imported.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    function, arguments = pickle.load(sys.stdin.buffer)
    try:
        found = (True, function(*arguments))
    except ShardyardError as error:
        found = (False, str(error))
    except Exception as error:  # noqa: BLE001  the server tells it, and goes on
        found = (False, f"{type(error).__name__}: {error}. This is a bug in Shardyard.")
    with answer:
        pickle.dump(found, answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
