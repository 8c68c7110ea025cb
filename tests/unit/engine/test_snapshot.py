"""Copies of states in host memory, and the files that are written from them while the originals change."""

from __future__ import annotations

import errno
import math
import mmap
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from shardyard.engine.checkpoint.output import Output
from shardyard.engine.checkpoint.rank_file import rank_file, read_header, read_member
from shardyard.engine.checkpoint.shard_files import ShardFiles
from shardyard.engine.checkpoint.snapshot import HostImage
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


def written(states: dict[str, Any]) -> bytes:
    return b"".join(rank_file({"shard.pt": states}, "random").buffers())


def test_a_copy_has_the_bytes_of_the_file_and_stays() -> None:
    original = state()
    copied = HostImage().copied(rank_file({"shard.pt": original}, "random"))
    assert copied.numpy().tobytes() == written(original)
    assert not copied.data_ptr() % mmap.PAGESIZE
    original["module"]["first"].zero_()
    original["moments"][0]["step"] += 1
    assert copied.numpy().tobytes() == written(state()) != written(original)


def test_memory_is_used_again_and_grows() -> None:
    image = HostImage()
    first = image.copied(rank_file({"shard.pt": state()}, "random")).data_ptr()
    assert image.copied(rank_file({"shard.pt": {"less": torch.ones(3)}}, "random")).data_ptr() == first
    more = {"more": torch.arange(50_000)}
    assert image.copied(rank_file({"shard.pt": more}, "random")).numpy().tobytes() == written(more)


def test_weights_are_found_in_the_file_where_it_has_them_as_they_are() -> None:
    original = state()
    first, second = original["module"].values()
    file = rank_file({"shard.pt": original}, "random")
    contents = b"".join(file.buffers())
    for tensor in (first, first.view(-1)[1:], *original["master"], original["moments"][0]["exp_avg"]):
        at = file.place_of(tensor)
        assert at is not None
        values = torch.frombuffer(bytearray(contents[at : at + tensor.nbytes]), dtype=tensor.dtype)
        assert torch.equal(values, tensor.detach().reshape(-1))
    for other in (second, torch.ones(3), original["moments"][0]["exp_avg"].view(torch.int16)):
        assert file.place_of(other) is None, "in another order, not there, or of another type"


def test_files_hold_what_was_copied_and_are_written_again_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, original = ShardFiles(), state()
    path = tmp_path / "partial" / "rank-00000.safetensors"
    shards.create(None)
    shards.makedirs(str(path.parent / "engine"))
    shards.save(original, str(path.parent / "engine" / "shard.pt"))
    shards.copy("random", {})
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


@pytest.mark.parametrize("held", [True, False])
def test_copied_weights_that_are_not_finite_are_not_written(tmp_path: Path, held: bool) -> None:
    """Under ZeRO-3 the file holds the master weights instead, and the weights are looked at before they change."""
    shards, weight = ShardFiles(), torch.ones(3)
    shards.create(None)
    weight[1] = math.inf
    shards.save({"module": {"weight": weight if held else torch.ones(3)}}, "shard.pt")
    shards.copy("random", {"weight": weight})
    weight[1] = 1.0
    shards.write(tmp_path / "rank-00000.safetensors", "random")
    assert (shards.spoiled, shards.entry, shards.errors) == (("weight",), None, [])
    assert os.listdir(tmp_path) == []
    shards.create(None)
    shards.save({"module": {"weight": weight}}, "shard.pt")
    shards.copy("random", {"weight": weight})
    weight[1] = math.inf
    shards.write(tmp_path / "rank-00000.safetensors", "random")
    assert shards.spoiled == ()
    assert shards.entry is not None


def test_a_state_that_cannot_be_copied_is_an_error_of_the_file(tmp_path: Path) -> None:
    shards = ShardFiles()
    shards.create(None)
    shards.save({"function": print}, "shard.pt")
    shards.copy("random", {"weight": torch.ones(3)})
    shards.write(tmp_path / "rank-00000.safetensors", "random")
    (error,) = shards.errors
    assert "builtin_function_or_method" in error
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("is_direct", [True, False])
def test_pages_are_written_from_where_they_are(
    tmp_path: Path, is_direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the disk refuses that, they go through the page cache."""
    size = 5 << 20
    memory = memoryview(mmap.mmap(-1, size))
    numpy.frombuffer(memory, dtype=numpy.uint32)[:] = numpy.arange(size // 4)
    staged, refusing = [], [not is_direct]
    plain, pwrite = Output._staged, os.pwrite
    monkeypatch.setattr(Output, "_staged", lambda output, wanted: staged.append(wanted) or plain(output, wanted))

    def refuse(descriptor: int, data: Any, offset: int) -> int:
        if refusing.pop() if refusing else False:
            raise OSError(errno.EFAULT, "Bad address")
        return pwrite(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    with Output(tmp_path / "file", size - 100) as file:
        file.write([memory[: 4 << 20]], 0)
        file.write([memory[4 << 20 : size - 100]], 4 << 20)
        file.finish(size - 100)
    assert (tmp_path / "file").read_bytes() == bytes(memory)[: size - 100]
    if file._direct:
        assert staged == [(1 << 20) - 100], "the rest is no whole number of pages"


@pytest.mark.parametrize("background", [False, True])
def test_a_task_gives_its_result_or_its_error(background: bool) -> None:
    task = Task(lambda: 3, background=background)
    assert task.result() == 3
    assert task.done

    def fail() -> int:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        Task(fail, background=background).result()
