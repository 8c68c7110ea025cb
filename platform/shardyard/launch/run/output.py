"""Redirecting output: library output to a log, user output to the terminal."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from shardyard.redaction import scrub


def redirect_output(log: Path) -> None:
    """Redirect all output of this process and its children to a file, including file descriptors."""
    log.parent.mkdir(parents=True, exist_ok=True)
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)
    # Ray replaces these objects; writing directly to the descriptors keeps the order of lines.
    sys.stdout = _Scrubbed(1)
    sys.stderr = _Scrubbed(2)


class _Lossy(io.FileIO):
    """A file whose writes never fail: output rejected by a full disk or a closed pipe is dropped."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _Scrubbed(io.TextIOWrapper):
    """A text stream on a descriptor that removes secrets: libraries print URLs in warnings and tracebacks."""

    def __init__(self, descriptor: int) -> None:
        binary = io.BufferedWriter(_Lossy(descriptor, "w", closefd=False))
        super().__init__(binary, line_buffering=True, encoding="utf-8", errors="backslashreplace")

    def write(self, text: str, /) -> int:
        """Write text; returns the number of characters."""
        super().write(scrub(text))
        return len(text)


def lossy(descriptor: int) -> TextIO:
    """A text stream, flushed line by line, that never raises: output errors must not fail a run."""
    return io.TextIOWrapper(
        io.BufferedWriter(_Lossy(descriptor, "w")), encoding="utf-8", errors="replace", line_buffering=True
    )


class Terminal:
    """The original terminal descriptors while output goes to a log; restores them at the end."""

    def __init__(self, log: Path) -> None:
        self._saved = os.dup(1), os.dup(2)
        self._streams = sys.stdout, sys.stderr
        self.stream = lossy(os.dup(self._saved[0]))
        redirect_output(log)

    @property
    def told(self) -> int:
        """The descriptor on which a person is told what goes wrong."""
        return self._saved[1]

    def restore(self) -> None:
        """Restore the descriptors."""
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = self._streams
        for descriptor, saved in zip((1, 2), self._saved, strict=True):
            os.dup2(saved, descriptor)
            os.close(saved)
        self.stream.flush()
