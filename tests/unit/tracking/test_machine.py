"""Samples of the machines of a run, from all nodes, in the records of rank 0."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from shardyard.tracking.metrics.machine import MachineWatch, Sampler
from support.waiting import until

PERIOD = 0.05


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def _watch(stack: ExitStack, folder: Path, node: str, *, collects: bool) -> MachineWatch:
    watch = MachineWatch(folder, node, collects=collects, gpu=False, period=PERIOD)
    stack.callback(watch.close)
    return watch


def _until_nodes(watch: MachineWatch, count: int) -> dict[str, float]:
    found: dict[str, float] = {}

    def enough() -> bool:
        found.update(watch.take())
        sum(range(1_000_000))  # So that the CPU has something to do.
        return len(_nodes(found)) >= count

    until(enough, lambda: found)
    return found


def _nodes(sample: dict[str, float]) -> set[str]:
    return {name.split("/")[1] for name in sample}


def _later(watch: MachineWatch) -> dict[str, float]:
    """A sample that was begun after this call: of the first two, the earlier may have been under way."""
    for _ in range(2):
        until(watch.take, "a sample")
    return until(watch.take, "a sample")


def test_rank_0_records_all_nodes(stack: ExitStack, tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "machines"
    other = _watch(stack, folder, "node b/../x", collects=False)
    first = _watch(stack, folder, "node-a", collects=True)
    found = _until_nodes(first, 2)
    assert {"system/node-a/cpu.percent", "system/node-b-..-x/memory.usedBytes"} <= found.keys()
    assert all(name.startswith(("system/node-a/", "system/node-b-..-x/")) for name in found)
    assert 0 < found["system/node-a/memory.percent"] <= 100
    # Since the sample before: an idle moment is possible.
    assert 0 <= found["system/node-a/cpu.percent"] <= 100
    other.close()
    assert not list(folder.iterdir())
    assert _nodes(_later(first)) == {"node-a"}
    assert not other.take()


def test_what_is_old_or_no_sample_is_left_out(stack: ExitStack, tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"time": 1')
    (tmp_path / "odd.json").write_text(json.dumps({"time": time.time(), "sample": {"cpu.percent": "much"}}))
    (tmp_path / "old.json").write_text(json.dumps({"time": time.time() - 60, "sample": {"cpu.percent": 1.0}}))
    first = _watch(stack, tmp_path, "node-a", collects=True)
    assert _nodes(_later(first)) == {"node-a"}


def test_a_folder_that_cannot_be_written_ends_nothing(
    stack: ExitStack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    tries: list[Path] = []
    make = Path.mkdir

    def mkdir(path: Path, *arguments: Any, **options: Any) -> None:
        tries.append(path)
        make(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    watch = _watch(stack, tmp_path / "file" / "machines", "node-b", collects=False)
    until(lambda: tries.count(tmp_path / "file" / "machines") >= 2, "it tries again after it has failed")
    assert watch._thread.is_alive()


def test_rates_are_means_since_the_sample_before() -> None:
    sampler = Sampler(gpu=False)
    sum(range(1_000_000))
    sample = sampler()
    assert sample["network.sentBytesPerSecond"] >= 0
    assert 0 <= sample["cpu.percent"] <= 100
