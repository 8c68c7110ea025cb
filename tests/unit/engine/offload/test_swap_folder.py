"""The folders of ranks that offload to a disk: one owner each, and none is left over."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from shardyard.engine.offload.folder import SwapFolder
from shardyard.errors import HardwareError

Usage = namedtuple("Usage", "total used free")
HOLDS = """
import sys, time
from pathlib import Path
from shardyard.engine.offload.folder import SwapFolder
folder = SwapFolder(Path(sys.argv[1]))
(folder.path / "0.tensor.swp").write_bytes(b"state")
print(folder.path, flush=True)
sys.stdin.read()
"""


def held(base: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process with a folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(base)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_a_folder_has_one_owner_and_goes_with_it(tmp_path: Path) -> None:
    base = tmp_path / "disk"
    one, two = SwapFolder(base), SwapFolder(base)
    assert one.path != two.path
    assert two.removed == [], "a folder that is in use stays"
    one.close()
    one.close()
    assert not one.path.exists()
    assert two.path.is_dir()
    two.close()


def test_the_folder_of_a_killed_process_is_removed_by_the_next_start(tmp_path: Path) -> None:
    process, path = held(tmp_path)
    beside = SwapFolder(tmp_path)
    assert beside.removed == []
    assert (path / "0.tensor.swp").exists()
    process.kill()
    process.communicate()
    assert (path / "0.tensor.swp").exists(), "nobody could remove it"
    after = SwapFolder(tmp_path)
    assert after.removed == [path]
    assert not path.exists()
    after.close()
    beside.close()


def test_a_process_that_ends_removes_its_folder(tmp_path: Path) -> None:
    process, path = held(tmp_path)
    process.communicate("")
    assert process.returncode == 0
    assert not path.exists()


def test_files_of_others_stay(tmp_path: Path) -> None:
    other = tmp_path / "shardyard-link"
    (tmp_path / "elsewhere").mkdir()
    other.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "precious").mkdir()
    SwapFolder(tmp_path).close()
    assert other.is_symlink()
    assert (tmp_path / "precious").is_dir()
    assert (tmp_path / "elsewhere").is_dir()


def test_too_little_space_says_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SwapFolder(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1 << 40, 0, 3 << 30))
    folder.require(1 << 30, ranks=3)
    with pytest.raises(HardwareError, match=r"needs 2 × 2\.0 GiB for .* and has 3\.0 GiB free; free some space"):
        folder.require(2 << 30, ranks=2)
    folder.close()


def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HardwareError, match=r"zero\.nvme_path .*file cannot be used: .*; choose a folder on a local"):
        SwapFolder(tmp_path / "file")
    monkeypatch.setattr(os, "O_DIRECT", os.O_DIRECTORY)  # fails for a file, as direct access does in memory
    with pytest.raises(HardwareError, match="has no direct access"):
        SwapFolder(tmp_path / "memory")
    assert list((tmp_path / "memory").glob("shardyard-*")) == []
