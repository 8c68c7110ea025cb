"""Handling of Ctrl-C while the command starts and ends: it exits silently, because there is nothing to save.

Imported first, so it imports almost nothing.
"""

from __future__ import annotations

import os
import signal
import sys

EXIT_INTERRUPTED = 130


def end_quietly(code: int) -> None:
    """Let Ctrl-C end the process immediately with this exit code."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))


def is_command(program: str) -> bool:
    """Whether `sys.argv[0]` is the command, not a program that imports it."""
    return os.path.basename(program) == "shardyard" or program.endswith(os.path.join("shardyard", "cli", "main.py"))


if is_command(sys.argv[0]):
    end_quietly(EXIT_INTERRUPTED)
