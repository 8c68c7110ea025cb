"""Output to a full disk: nothing that is said fails a run, and a command ends with its error and exit code."""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from shardyard.launch.run.output import lossy
from shardyard.tracking.run.folder import unwritable
from support.cli import COMMAND

FULL = Path("/dev/full")


def test_a_log_on_a_full_disk_takes_everything() -> None:
    stream = lossy(os.open(FULL, os.O_WRONLY))
    print("a word", file=stream)
    stream.write("more" * 100_000)
    stream.flush()
    stream.close()


def test_a_log_is_written_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    stream = lossy(os.open(path, os.O_WRONLY | os.O_CREAT))
    stream.write("a line – and\na half")
    assert path.read_text() == "a line – and\na half"
    stream.close()


def test_output_that_cannot_be_written_is_exit_code_1_with_a_word() -> None:
    """Python alone would end with 120 and no word."""
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False
        )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_where_nothing_at_all_can_be_written_the_exit_code_remains(tmp_path: Path) -> None:
    with FULL.open("w") as full:
        command = [*COMMAND, "validate", str(tmp_path / "none.yaml")]
        assert subprocess.run(command, stdout=full, stderr=full, timeout=120, check=False).returncode == 2


@pytest.mark.parametrize(("number", "code"), [(errno.ENOSPC, 1), (errno.EDQUOT, 1), (errno.EIO, 1), (errno.EACCES, 2)])
def test_a_full_disk_is_no_mistake_of_the_command_line(number: int, code: int) -> None:
    error = unwritable(Path("/runs"), OSError(number, os.strerror(number)))
    assert error.exit_code == code
    assert f"/runs cannot be written: {os.strerror(number)}" in str(error)
