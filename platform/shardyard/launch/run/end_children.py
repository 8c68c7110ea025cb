"""Ending at once: the processes that this one started must not outlive it."""

from __future__ import annotations

import contextlib

import psutil


def end_children() -> None:
    """Kill all descendants of this process, Ray's daemons and workers among them."""
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
