"""Measuring the memory of a run that asks for it, from before its model is built; the result lies in its folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import deepspeed
from torch import nn

from shardyard.engine.hooks.base import Hook
from shardyard.engine.job import Job
from shardyard.engine.memory.allocations import Allocations
from shardyard.engine.memory.breakdown import Allocated
from shardyard.engine.memory.hook import AllocationHook
from shardyard.engine.mesh import Mesh
from shardyard.tracking.files import write_atomically
from shardyard.tracking.run.folder import RunFolder

# The hooks that an engine needs for it, beside a frozen model; none without measuring.
Watch = Callable[[deepspeed.DeepSpeedEngine, nn.Module | None], list[Hook]]
NAME = "allocated.json"


@contextmanager
def measured(job: Job, mesh: Mesh) -> Iterator[Watch]:
    """Count allocations inside, if the job asks for it."""
    if not job.measure:
        yield lambda engine, frozen: []
        return
    with Allocations(mesh.device.type) as allocations:
        yield lambda engine, frozen: [
            AllocationHook(engine, allocations, mesh, lambda found: _write(job.folder, found), frozen)
        ]


def _write(folder: RunFolder, ranks: list[Allocated]) -> None:
    write_atomically(folder.path / NAME, json.dumps({"ranks": [asdict(one) for one in ranks]}, indent=1) + "\n")


def read_allocated(folder: RunFolder) -> list[Allocated]:
    """What each rank allocated at its peak; empty if it was not measured."""
    path = folder.path / NAME
    if not path.is_file():
        return []
    return [Allocated(**one) for one in json.loads(path.read_text(encoding="utf-8"))["ranks"]]
