"""Where a recipe runs."""

from __future__ import annotations

from typing import Literal

from shardyard.recipe.sections.base import BYTES_PATTERN, Section, described


class Cluster(Section):
    workers: int = described(1, "Ray workers; one rank each (the world size).", "ranks", ge=1)
    gpus_per_worker: Literal[0, 1] | None = described(
        None, "GPUs of each worker. Default: 1 where the machine or cluster has GPUs, else 0.", "GPUs"
    )
    cpus_per_worker: int = described(1, "CPU cores that Ray reserves for each worker.", "cores", ge=1)
    memory_per_worker: str | None = described(
        None,
        "Memory of a worker's device, such as 80GiB, that the plan must fit. Default: that of the GPU found here.",
        "bytes",
        pattern=BYTES_PATTERN,
    )
    address: str | None = described(None, "Ray cluster to use (RAY_ADDRESS wins); by default a local one is started.")
    max_failures: int = described(
        3, "Restarts after failures, each from the newest whole checkpoint.", "restarts", ge=0
    )
