"""The folder that a conversion writes: it appears when it is whole and verified."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shardyard.errors import UsageError


@contextmanager
def target(folder: Path) -> Iterator[Path]:
    """A folder beside `folder`, which gets its name at the end of the context, or is removed after an error.

    Raises:
        UsageError: `folder` exists.
    """
    if folder.exists():
        raise UsageError(f"{folder} exists already; give another folder, or remove it.")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
