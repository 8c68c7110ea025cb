"""The one file of a rank: every value comes back, any tool reads its tensors, no part of it is trusted."""

from __future__ import annotations

import json
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import CreateLossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from safetensors import safe_open

from shardyard.engine.checkpoint import blocks, files
from shardyard.engine.checkpoint.blocks import BLOCK_BYTES, FileEntry, damaged_blocks, written
from shardyard.engine.checkpoint.rank_file import rank_file, read_header, read_member
from shardyard.engine.checkpoint.shards import Shards
from shardyard.errors import CheckpointError

SCALER = {
    "init_scale": 2.0**16,
    "scale_window": 9,
    "min_scale": 1.0,
    "delayed_shift": 2,
    "consecutive_hysteresis": False,
}


def state() -> dict[str, Any]:
    flat = torch.arange(24, dtype=torch.float32)
    return {
        "module": {"a": flat[:6].view(2, 3), "b": flat[6:], "again": flat[:6].view(2, 3)},
        "overlapping": [flat[4:10], flat[8:20:2], flat.view(4, 6).T],
        "narrow": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "flags": torch.tensor([True, False, True]),
        "step": torch.tensor(7.0),
        "empty": torch.empty(0, 3),
        "eight bit": torch.arange(5, dtype=torch.uint8),
        "fp8": torch.tensor([0.5, 2.0]).to(torch.float8_e4m3fn),
        "shapes": [OrderedDict(weight=torch.Size([2, 3]))],
        "by number": {0: {"lr": 1e-3, "betas": (0.9, 0.95)}, 1: None},
        "scaler": CreateLossScaler(torch.float, 1.0, False, None),
        "dynamic": CreateLossScaler(torch.half, 0, True, SCALER),
        "stage": ZeroStageEnum(3),
        "address": fragment_address(numel=4, start=2),
        "dtype": torch.float16,
        "names": {"x", "y"},
        "infinite": float("inf"),
    }


def write(path: Path, **members: object) -> FileEntry:
    return written(path, rank_file(members, "random").buffers())


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        assert torch.equal(found.double(), wanted.double())
    elif isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, list | tuple):
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    else:
        assert getattr(found, "__dict__", found) == getattr(wanted, "__dict__", wanted)


@pytest.mark.parametrize("copied", [False, True])
def test_every_value_comes_back(tmp_path: Path, copied: bool) -> None:
    path = tmp_path / "rank-00000.safetensors"
    entry = write(path, one=state(), two={"only": 1})
    header = read_header(path)
    assert entry.size_bytes == path.stat().st_size
    assert (sorted(header.members), header.random) == (["one", "two"], "random")
    assert_same(read_member(header, "one", copied=copied), state())
    assert read_member(header, "two", copied=copied) == {"only": 1}


def test_values_that_share_memory_are_written_once_and_parts_of_a_storage_alone(tmp_path: Path) -> None:
    whole = torch.arange(1 << 16, dtype=torch.float32)
    write(tmp_path / "a", one={"part": whole[10:20], "same": whole[10:20], "other": whole[30:32]})
    assert sum(end - begin for begin, end in read_header(tmp_path / "a").spans.values()) == 4 * 12
    write(tmp_path / "b", one={"whole": whole, "part": whole[5:9]})
    assert sum(end - begin for begin, end in read_header(tmp_path / "b").spans.values()) == 4 << 16


def test_any_reader_of_safetensors_lists_and_reads_the_tensors(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.safetensors"
    write(path, **{"optim.pt": state()})
    with safe_open(path, framework="pt") as opened:
        assert "optim.pt/narrow" in opened.keys()  # noqa: SIM118
        assert torch.equal(opened.get_tensor("optim.pt/narrow"), state()["narrow"])
        assert opened.metadata()["layout"] == "shardyard.rank.1"


def test_an_object_that_is_no_tensor_is_refused_where_it_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"cannot hold one/client/thing, an object of pathlib\.\w+Path"):
        write(tmp_path / "a", one={"client": {"thing": tmp_path}})


def with_header(path: Path, change: Any) -> Path:
    """Rewrite the header of a rank's file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    text = json.dumps(change(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    return path


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"tensor": ["float32", 0, [1 << 40], [1]]}, "outside of the file"),
        ({"tensor": ["float32", -64, [2], [1]]}, "outside of the file"),
        ({"tensor": ["float32", 0, [2], [-1]]}, "outside of the file"),
        ({"tensor": ["load", 0, [2], [1]]}, "tensors of 'load'"),
        ({"tensor": ["float32"]}, "cannot be read"),
        ({"call": ["os.system", "true"]}, "the kind 'call'"),
        ({"dict": 3}, "cannot be read"),
        ({}, "does not know"),
    ],
)
def test_a_forged_file_is_refused_and_runs_nothing(tmp_path: Path, tree: object, message: str) -> None:
    path = tmp_path / "rank-00000.safetensors"
    write(path, one={"a": torch.zeros(4)})

    def change(header: Any) -> Any:
        header["__metadata__"]["member:one"] = json.dumps(tree)
        return header

    with_header(path, change)
    with pytest.raises(CheckpointError, match=message):
        read_member(read_header(path), "one", copied=True)


@pytest.mark.parametrize("data", [b"", b"\xff" * 8, struct.pack("<Q", 2) + b"{}", b"PK\x03\x04 a zip of torch"])
def test_what_is_no_file_of_a_rank_is_said(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(CheckpointError, match="is not the file of a rank"):
        read_header(tmp_path / "a")


# Hashes by blocks


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_damage_is_found_in_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: str) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 64)
    if algorithm == "sha256":
        monkeypatch.delitem(blocks._HASHES, "blake3")
    data = bytes(range(200))
    path = tmp_path / "a"
    entry = written(path, [memoryview(data[:50]), memoryview(data[50:130]), memoryview(data[130:])])
    assert path.read_bytes() == data
    assert (len(entry.digests), entry.algorithm) == (4, algorithm)
    assert FileEntry.of(json.loads(json.dumps(entry.fields()))) == entry
    changed = bytearray(data)
    changed[70] ^= 1
    path.write_bytes(changed)
    assert damaged_blocks(path, entry) == [1]
    assert entry.ranges[1] == (64, 128)
    assert damaged_blocks(path, entry, [0, 2, 3]) == []


def test_many_small_buffers_and_partial_writes_arrive_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = blocks.os.writev
    monkeypatch.setattr(blocks.os, "writev", lambda file, buffers: whole(file, [buffers[0][:3]]))
    data = bytes(range(256)) * 4
    entry = written(tmp_path / "a", [memoryview(data)[at : at + 5] for at in range(0, len(data), 5)])
    assert (tmp_path / "a").read_bytes() == data
    assert damaged_blocks(tmp_path / "a", entry) == []


def test_a_hash_that_is_not_installed_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = written(tmp_path / "a", [memoryview(b"abc")])
    monkeypatch.delitem(blocks._HASHES, "blake3")
    with pytest.raises(CheckpointError, match="pip install blake3"):
        damaged_blocks(tmp_path / "a", entry)


@pytest.mark.parametrize("fields", [{"size_bytes": 3}, {"size_bytes": 3, "block_bytes": 2, "sha256": ["00"]}])
def test_an_entry_that_cannot_be_verified_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(CheckpointError):
        FileEntry.of(fields)


def test_only_the_blocks_with_wanted_tensors_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = files.partial_folder(tmp_path, 1)
    partial.mkdir()
    weights, moments = torch.zeros(BLOCK_BYTES // 4), torch.zeros(3 * BLOCK_BYTES // 4)
    name = "rank-00000.safetensors"
    members = {"mp_rank_00_model_states.pt": {"module": {"a": weights}}, "optim.pt": {"exp_avg": moments}}
    entry = write(partial / name, **members)
    folder = files.commit(tmp_path, 1, {name: entry}, members={name: list(members)}, world_size=1, zero_stage=1)
    with (folder / name).open("r+b") as file:
        file.seek(3 * BLOCK_BYTES)
        file.write(b"\1")
    manifest = files.read_manifest(folder)
    read: list[int] = []
    digest_of = blocks._digest_of

    def note(descriptor: int, entry: FileEntry, number: int) -> str:
        read.append(number)
        return digest_of(descriptor, entry, number)

    monkeypatch.setattr(blocks, "_digest_of", note)
    assert Shards(folder, manifest).damaged(lambda place: "_model_states.pt/" in place) == []
    assert read == [0, 1]
    assert files.damaged_in(folder, manifest, name) == [(3 * BLOCK_BYTES, 4 * BLOCK_BYTES)]
    shares = [files.damaged_files(folder, manifest, part=part, parts=3) for part in range(3)]
    assert shares == [[name], [], []]
    (folder / "rank-00001.safetensors").write_bytes(b"")
    assert Shards(folder, manifest).damaged(lambda _: False) == ["rank-00001.safetensors"]


def test_members_are_names_and_no_paths(tmp_path: Path) -> None:
    partial = files.partial_folder(tmp_path, 1)
    partial.mkdir()
    entry = write(partial / "rank-00000.safetensors", one={})
    members = {"rank-00000.safetensors": ["../../elsewhere"]}
    folder = files.commit(tmp_path, 1, {"rank-00000.safetensors": entry}, members=members, world_size=1, zero_stage=1)
    with pytest.raises(CheckpointError, match="which is a path"):
        Shards(folder, files.read_manifest(folder))
