"""Copies in stores of Google and Azure: their drivers against servers on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shardyard.engine.checkpoint import blocks, files
from shardyard.engine.checkpoint.remote.fetching import fetched
from shardyard.engine.checkpoint.remote.store import Store
from shardyard.errors import CheckpointError
from shardyard.tracking.run.folder import RunFolder
from support.reliability.mirrors import copied, run_with_checkpoints, whole, write
from support.servers.azure import azure_server
from support.servers.gs import gs_server
from support.servers.s3 import BUCKET

pytestmark = pytest.mark.slow
SERVERS = {"gs": gs_server, "az": azure_server}


@pytest.fixture(scope="module", params=SERVERS)
def scheme(request: pytest.FixtureRequest) -> Iterator[str]:
    """The scheme of a store that is there."""
    with SERVERS[request.param]():
        yield request.param


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    return run_with_checkpoints(tmp_path / "here")


def test_checkpoints_are_copied_kept_and_fetched(scheme: str, run: RunFolder, tmp_path: Path) -> None:
    store = Store(f"{scheme}://{BUCKET}/copies/{run.id}")
    store.check_writable()
    mirror = copied(run, store)
    assert whole(store) == [20, 30]
    write(run.checkpoints, 40)
    assert mirror.is_behind
    mirror.sync()
    assert whole(store) == [30, 40]
    assert store.read("metrics.jsonl") == run.metrics.read_bytes()
    there = fetched(store.url, tmp_path / "elsewhere", report=lambda _: None)
    path = there.checkpoints / "step-00000040"
    assert files.damaged_files(path, files.read_manifest(path)) == []


def test_files_of_a_store(scheme: str, tmp_path: Path) -> None:
    """Also one of several parts, one that is not there, and an empty one."""
    store, large = Store(f"{scheme}://{BUCKET}/files"), tmp_path / "large"
    large.write_bytes(bytes(range(256)) * (12 << 12))
    store.put("a/large", large)
    store.put("a/empty", b"")
    assert store.sizes() == {"a/empty": 0, "a/large": large.stat().st_size}
    assert store.sizes("a/large") == {"a/large": large.stat().st_size}, "the address of a file"
    assert store.read("a/large", 250, 260) == large.read_bytes()[250:260]
    assert (store.read_if_there("a/empty"), store.read_if_there("b")) == (b"", None)
    store.get("a/large", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    store.remove(["a/large", "a/empty", "b"])
    assert store.sizes() == {}


def test_a_bucket_that_is_not_there_is_told(scheme: str) -> None:
    with pytest.raises(CheckpointError, match=rf"{scheme}://nowhere/runs cannot be written: there is no such bucket"):
        Store(f"{scheme}://nowhere/runs").check_writable()
