"""Folders of local Rays (`session_*` in Ray's temporary folder), which Ray never removes.

A folder of ours holds a file on which its driver has a lock for as long as it lives, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

import psutil

MARK = "shardyard.lock"
# Open files of marks, whose locks end with this process.
_HELD: dict[Path, int] = {}


def mark(folder: Path) -> None:
    """Mark a folder as one of this process; without a mark it is nobody's, and stays."""
    with contextlib.suppress(OSError):
        file = os.open(folder / MARK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _HELD[folder] = file


def remove(folder: Path) -> None:
    """Remove a folder that this process has marked, and the link to it."""
    file = _HELD.pop(folder, None)
    if file is not None:
        _remove(folder)
        os.close(file)


def remove_dead(parent: Path) -> None:
    """Remove marked folders whose drivers have ended, for example by `kill -9`."""
    for lock in parent.glob(f"session_*/{MARK}"):
        if lock.parent.is_symlink() or lock.parent in _HELD:
            continue
        with contextlib.suppress(OSError), lock.open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _end_agents(lock.parent)
            _remove(lock.parent)


def _end_agents(folder: Path) -> None:
    """Kill what still writes into the folder: agents of Ray outlive a killed driver by a minute, in which they try to
    tell its head, which is gone too, that the raylet is."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            # Ray renames them, so that their commands no longer name the session.
            if "".join(process.cmdline()[:1]).startswith("ray::") and any(
                Path(file.path).is_relative_to(folder) for file in process.open_files()
            ):
                process.kill()


def _remove(folder: Path) -> None:
    latest = folder.parent / "session_latest"
    with contextlib.suppress(OSError):
        if latest.is_symlink() and latest.readlink().name == folder.name:
            latest.unlink()
    shutil.rmtree(folder, ignore_errors=True)
