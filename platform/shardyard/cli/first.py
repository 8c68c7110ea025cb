"""Ctrl-C while the command imports what it needs, and while it ends: quiet, because there is nothing to save.

Imported before everything else, and imports next to nothing itself.
"""

from __future__ import annotations

import os
import signal
import sys

EXIT_INTERRUPTED = 130


def end_quietly(code: int) -> None:
    """Have Ctrl-C end the process at once with this exit code."""
    signal.signal(signal.SIGINT, lambda number, frame: os._exit(code))


def is_command(program: str) -> bool:
    """Whether a process whose `sys.argv[0]` this is belongs to the command, and not to somebody who imports it."""
    return os.path.basename(program) == "shardyard" or program.endswith(os.path.join("shardyard", "cli", "main.py"))


if is_command(sys.argv[0]):
    end_quietly(EXIT_INTERRUPTED)
