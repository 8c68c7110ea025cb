"""What a checkpoint that could not be written says, and what it advises."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from shardyard.engine.checkpoint.files import located, says_full, what_to_do
from shardyard.engine.checkpoint.shard_files import ShardFiles


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.EROFS, "Its file system is read-only"),
        (errno.EIO, "The disk, or the server of a shared file system"),
        (errno.ESTALE, "The disk, or the server of a shared file system"),
        (errno.EACCES, "The user of the run may not write there"),
        (errno.EMFILE, "Too many files are open there"),
        (errno.EINVAL, ""),
    ],
)
def test_the_error_decides_the_advice(code: int, advice: str) -> None:
    assert what_to_do({code}).startswith(advice)
    assert bool(what_to_do({code})) == bool(advice)
    assert not says_full({code})


def test_a_full_disk_and_a_quota_are_full() -> None:
    assert says_full({errno.ENOSPC})
    assert says_full({errno.EIO, errno.EDQUOT})
    assert not says_full(())


def test_an_error_names_its_file_and_host() -> None:
    here = f" on {socket.gethostname()}"
    bare, named = OSError(errno.EIO, os.strerror(errno.EIO)), OSError(errno.EROFS, "Read-only file system", "/other")
    assert located(bare, Path("/run/rank-00001.safetensors")).endswith(f"error in /run/rank-00001.safetensors{here}")
    assert located(named, Path("/run/x")) == f"[Errno {errno.EROFS}] Read-only file system: '/other'{here}"


def test_a_rank_keeps_the_numbers_of_its_errors(tmp_path: Path) -> None:
    files = ShardFiles()

    def broken() -> None:
        raise OSError(errno.EIO, "Input/output error")

    files.kept(broken, tmp_path / "file")
    assert files.codes == {errno.EIO}
    assert files.errors == [located(OSError(errno.EIO, "Input/output error"), tmp_path / "file")]
