"""A run with small checkpoints, and its copy in a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.blocks import written
from shardyard.engine.checkpoint.remote.contents import problems_of, stored_in
from shardyard.engine.checkpoint.remote.mirror import Mirror
from shardyard.engine.checkpoint.remote.store import Store
from shardyard.tracking.run.folder import RunFolder

CONTENTS = {"rank-00000.safetensors": bytes(range(250)), "rank-00001.safetensors": bytes(250), "data.json": b"{}"}


def run_with_checkpoints(runs: Path) -> RunFolder:
    """A run with records and checkpoints of steps 10, 20 and 30."""
    folder = RunFolder.create(runs, "tiny", "name: tiny", "name: tiny")
    folder.metrics.write_text('{"step": 1}\n')
    for step in (10, 20, 30):
        write(folder.checkpoints, step)
    return folder


def write(checkpoints: Path, step: int, **metadata: Any) -> Path:
    """A checkpoint of a few bytes."""
    partial = files.partial_folder(checkpoints, step)
    partial.mkdir(parents=True)
    entries = {name: written(partial / name, [memoryview(data)]) for name, data in CONTENTS.items()}
    return files.commit(checkpoints, step, entries, world_size=2, zero_stage=1, **metadata)


def copied(run: RunFolder, store: Store, keep: int = 2, **more: Any) -> Mirror:
    """The run is copied once."""
    mirror = Mirror(run, store, keep, **more)
    mirror.claim()
    mirror.sync()
    return mirror


def whole(store: Store) -> list[int]:
    """Steps of the checkpoints that exist in a store; each must be whole."""
    found = [one for one in stored_in(store) if one.is_committed]
    assert [problem for one in found for problem in problems_of(store, one)] == []
    return [one.step for one in found]
