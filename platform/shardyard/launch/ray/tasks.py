"""Independent tasks on a Ray cluster or in local processes, a few at a time, with results in the order of the tasks.

Tasks read and write files, so results are small, nothing large lies in Ray's object store, and a task whose worker dies
is simply done again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError

from shardyard.errors import DataError, ShardyardError

# Tasks that wait for a free core, so that none waits for the driver.
AHEAD = 2
RETRIES = 3


class RayTasks:
    """A runner on the connected Ray. `workers`: tasks at the same time; by default one for each core.

    Raises:
        ShardyardError: (a call) that of a task, or its worker died again and again.
    """

    def __init__(self, workers: int | None = None) -> None:
        cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
        self._most = workers or cores + AHEAD

    def __call__(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        remote = ray.remote(num_cpus=1, max_retries=RETRIES)(_caught)
        running: dict[Any, int] = {}
        done: dict[int, Any] = {}
        following = yielded = 0
        while yielded < len(tasks):
            while following < len(tasks) and len(running) < self._most:
                running[remote.remote(function, tasks[following], os.getcwd())] = following
                following += 1
            (reference,), _ = ray.wait(list(running))
            done[running.pop(reference)] = self._result(reference)
            while yielded in done:
                yield done.pop(yielded)
                yielded += 1

    def _result(self, reference: Any) -> Any:
        try:
            found = ray.get(reference)
        except RayError as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(
                f"a task ended without a result, {RETRIES} times again: {first}. If its worker was killed for memory, "
                "use fewer --workers; the same command goes on where it stopped."
            ) from error
        if isinstance(found, ShardyardError):
            raise found
        return found


def _caught(function: Callable[[Any], Any], task: Any, folder: str) -> Any:
    """The result of a task, or its error for people as a value, which Ray would wrap. Runs in a process of Ray."""
    # Paths of sources may be relative.
    with contextlib.suppress(OSError):
        os.chdir(folder)
    try:
        return function(task)
    except ShardyardError as error:
        return error
