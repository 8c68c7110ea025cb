"""Where the output of a process goes: logs for what libraries say, the terminal for what people read."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TextIO

from shardyard.redaction import scrub


def redirect_output(log: Path) -> None:
    """Send everything that this process and its children write to a file, file descriptors included."""
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    # Ray replaces these by objects of its own; writing straight to the descriptors keeps the order of lines.
    sys.stdout = _Scrubbed(1)
    sys.stderr = _Scrubbed(2)


class _Scrubbed(io.TextIOWrapper):
    """Text for a descriptor, without secrets: libraries put URLs into their warnings and tracebacks."""

    def __init__(self, descriptor: int) -> None:
        binary = os.fdopen(descriptor, "wb", closefd=False)
        super().__init__(binary, line_buffering=True, encoding="utf-8", errors="backslashreplace")

    def write(self, text: str, /) -> int:
        """Write it; says how many characters were taken."""
        super().write(scrub(text))
        return len(text)


class Terminal:
    """The terminal as it was before output went to a log; restores it at the end."""

    def __init__(self, log: Path) -> None:
        self._saved = os.dup(1), os.dup(2)
        self._streams = sys.stdout, sys.stderr
        self.stream: TextIO = os.fdopen(os.dup(self._saved[0]), "w", buffering=1, encoding="utf-8", errors="replace")
        redirect_output(log)

    def restore(self) -> None:
        """Put the descriptors back."""
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = self._streams
        for descriptor, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)
        self.stream.flush()
