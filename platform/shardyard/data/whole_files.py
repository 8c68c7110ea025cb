"""Files that are whole or absent: written aside, synced, and renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which is synced and renamed at the end; removed if that fails.

    Raises:
        OSError: the folder cannot be written; a file that was there is unchanged.
    """
    partial = path.with_name(f".{path.name}-{os.getpid()}.partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half written in a folder that nobody else writes."""
    for path in folder.glob(".*.partial"):
        with contextlib.suppress(OSError):
            path.unlink()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
