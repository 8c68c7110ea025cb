"""Files of a build in progress: written aside and renamed, so that each is whole or absent."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardyard.data.whole_files import aside
from shardyard.errors import DataError, UsageError


def write_json(path: Path, value: object) -> None:
    """Write a small file whole or not at all."""
    with aside(path) as partial:
        partial.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a file; None if it is not there."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder against other builds.

    Raises:
        UsageError: another process holds it.
    """
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"another process builds in {folder}; wait for it, or stop it.") from error
        yield


@contextmanager
def disk_in_words(folder: Path) -> Iterator[None]:
    """Errors of the disk in words.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder} cannot be written: {error.strerror or error}. Nothing of the output is there yet; the same "
            "command goes on where it stopped."
        ) from error
