"""Tasks of tokenising carried out by a Ray cluster, one core each."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from shardyard.errors import DataError
from shardyard.launch.tokens.processes import POLL_SECONDS, Call, attempt

# Tasks of lost nodes, and of processes that were killed, are tried again.
_RETRIES = 3


def on_ray(calls: Sequence[Call], workers: int | None) -> Iterator[str | None]:
    """Carry out tasks on the connected cluster; yields every second and after each task, with what went wrong if
    something did.

    Args:
        workers: the largest number at a time; None for as many as the cluster has cores.

    Raises:
        DataError: a task was lost repeatedly.
    """
    remote: Any = ray.remote(num_cpus=1, max_retries=_RETRIES)(_attempt)
    waiting, running = list(reversed(calls)), list[Any]()
    try:
        while waiting or running:
            most = workers or max(1, int(ray.cluster_resources().get("CPU", 1.0)))
            while waiting and len(running) < most:
                running.append(remote.remote(waiting.pop(), os.getcwd()))
            done, running = ray.wait(running, num_returns=1, timeout=POLL_SECONDS)
            yield from (ray.get(reference) for reference in done)
            if not done:
                yield None
    except RayError as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"a task was lost ({first}). The finished shards are kept: call the command again.") from error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _attempt(call: Call, folder: str) -> str | None:
    """Carry out a task in a process of Ray, in the folder from which paths of sources start."""
    with contextlib.suppress(OSError):
        os.chdir(folder)
    return attempt(call)
