"""Copies of states in host memory, and the files that are written from them while the originals change."""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from shardyard.engine.checkpoint.rank_file import read_header, read_member
from shardyard.engine.checkpoint.shard_files import ShardFiles
from shardyard.engine.checkpoint.snapshot import HostBuffers
from shardyard.engine.checkpoint.task import Task


def state() -> dict[str, Any]:
    flat = torch.arange(12.0)
    return {
        "module": OrderedDict(first=flat[:4].view(2, 2), second=flat[4:].view(2, 4).T),
        "master": [nn.Parameter(torch.ones(3))],
        "moments": {0: {"exp_avg": torch.ones(3, dtype=torch.bfloat16), "step": torch.tensor(7)}},
        "empty": (torch.empty(0), torch.empty(0, 3)),
        "step": 7,
    }


def same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, torch.Tensor):
        return type(ours) is type(theirs) and ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return (
            type(ours) is type(theirs) and ours.keys() == theirs.keys() and all(same(ours[k], theirs[k]) for k in ours)
        )
    if isinstance(ours, list | tuple):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return bool(ours == theirs)


def test_a_copy_is_equal_shares_what_was_shared_and_stays() -> None:
    original = state()
    copied = HostBuffers().copied(original)
    assert same(copied, original)
    first, second = copied["module"].values()
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()
    original["module"]["first"].zero_()
    original["moments"][0]["step"] += 1
    assert same(copied, state())


def test_memory_is_used_again_once_the_copy_is_written() -> None:
    buffers = HostBuffers()
    first = buffers.copied(state())["module"]["first"].data_ptr()
    other = buffers.copied(state())["module"]["first"].data_ptr()
    assert other != first, "the first copy is not written yet"
    buffers.reuse()
    assert buffers.copied(state())["module"]["first"].data_ptr() in (first, other)


def test_files_hold_what_was_copied_and_are_written_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, original = ShardFiles(), state()
    shards.copies = True
    path = tmp_path / "partial" / "rank-00000.safetensors"
    shards.create(None)
    shards.makedirs(str(path.parent / "engine"))
    shards.save(original, str(path.parent / "engine" / "shard.pt"))
    assert os.listdir(path.parent) == []
    original["module"]["first"].zero_()

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(os, "fsync", refuse)
        shards.write(path, "random")
    assert shards.codes == {errno.ENOSPC}
    assert len(shards.errors) == 1
    assert not path.exists()
    size = shards.size_bytes
    # The folder of a failed attempt is removed.
    path.parent.rmdir()
    shards.write(path, "random")
    assert (shards.codes, shards.errors, shards.size_bytes) == (set(), [], size)
    assert shards.entry is not None
    assert shards.entry.size_bytes == path.stat().st_size == size
    assert shards.members == ["shard.pt"]
    assert same(read_member(read_header(path), "shard.pt", copied=False), state())


@pytest.mark.parametrize("background", [False, True])
def test_a_task_gives_its_result_or_its_error(background: bool) -> None:
    task = Task(lambda: 3, background=background)
    assert task.result() == 3
    assert task.done

    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Task(fail, background=background).result()
