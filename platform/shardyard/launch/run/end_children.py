"""Killing the descendants of this process, which must not outlive it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

import psutil


def children() -> frozenset[psutil.Process]:
    """All descendants of this process."""
    return frozenset(psutil.Process().children(recursive=True))


def end_children(spare: Iterable[psutil.Process] = ()) -> None:
    """Kill all descendants of this process except those given: Ray's daemons and workers, and their children."""
    for child in children().difference(spare):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
