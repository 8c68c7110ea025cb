"""Files of a build in progress: written aside and renamed, so that each is whole or absent."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shardyard.errors import DataError, UsageError


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which is synced and renamed at the end; removed if that fails."""
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


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


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
