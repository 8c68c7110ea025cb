"""Where the output of a process goes: logs for what libraries say, the terminal for what people read."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

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


class _Lossy(io.FileIO):
    """A file that takes everything: what a full disk, or a pipe that nobody reads any more, does not take is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _Scrubbed(io.TextIOWrapper):
    """Text for a descriptor, without secrets: libraries put URLs into their warnings and tracebacks."""

    def __init__(self, descriptor: int) -> None:
        binary = io.BufferedWriter(_Lossy(descriptor, "w", closefd=False))
        super().__init__(binary, line_buffering=True, encoding="utf-8", errors="backslashreplace")

    def write(self, text: str, /) -> int:
        """Write it; says how many characters were taken."""
        super().write(scrub(text))
        return len(text)


def lossy(descriptor: int) -> TextIO:
    """A text stream, flushed line by line, that never raises: no run fails for what is said beside it."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Lossy(descriptor, "w")), encoding="utf-8", errors="replace", line_buffering=True
    )


class Terminal:
    """The terminal as it was before output went to a log; restores it at the end."""

    def __init__(self, log: Path) -> None:
        self._saved = os.dup(1), os.dup(2)
        self._streams = sys.stdout, sys.stderr
        self.stream = lossy(os.dup(self._saved[0]))
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
