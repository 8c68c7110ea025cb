"""Safe files: atomic replacement, and JSON lines that are appended and tailed while they grow.

JSON has no NaN or Infinity, but a diverging loss must be recorded: they are written as the strings `"NaN"`,
`"Infinity"` and `"-Infinity"` and read back as numbers.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shardyard.redaction import scrub_all

logger = logging.getLogger(__name__)

# Lines that wait for a disk with room: those of hours, and a few megabytes.
MOST_WAITING = 10_000

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> str:
    """One line of strictly valid JSON without secrets; numbers of numpy and torch become plain ones, other types
    text."""
    value = scrub_all(value)
    try:
        return json.dumps(value, allow_nan=False, default=_plain, ensure_ascii=False)
    except ValueError:
        return json.dumps(_spell_out(value), allow_nan=False, ensure_ascii=False)


def decode(line: str | bytes) -> Any:
    """The inverse of `encode`.

    Raises:
        ValueError: the line is not JSON, for example because its writer was killed.
    """
    return _read_back(json.loads(line))


def write_atomically(path: Path, text: str) -> None:
    """Replace the file atomically: a reader, or a crash at any moment, sees either the old or the new text.

    Raises:
        OSError: the folder is not writable or the disk is full; the old file is then unchanged.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


class JsonlWriter:
    """Appends objects to a file, each as one line in one write, so that processes can share the file.

    A line that cannot be written (full disk, vanished folder) waits, and is written with a later one or at the end: a
    run never fails because of its logs. Of more than `MOST_WAITING` lines the oldest are dropped. `problem` describes
    the failure while lines wait; it is logged once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        self._waiting: deque[bytes] = deque()
        self._dropped = 0
        self._late = 0
        self._descriptor: int | None = None
        self._torn = False

    @property
    def lost(self) -> int:
        """The number of lines that are not in the file."""
        return self._dropped + len(self._waiting)

    def append(self, record: Mapping[str, object]) -> bool:
        """Write one line, after those that wait; False if it is not written yet. Never raises."""
        try:
            line = encode(record).encode("utf-8", errors="replace") + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            self._dropped += 1
            self._tell(str(error))
            return False
        self._waiting.append(line)
        if len(self._waiting) > MOST_WAITING:
            self._waiting.popleft()
            self._dropped += 1
        return self._write(new=1)

    def take_late(self) -> int:
        """How many lines were written later than they came, since the last call; 0 while others still wait."""
        late, self._late = (self._late, 0) if not self._waiting else (0, self._late)
        return late

    def close(self) -> None:
        """Write what waits, if that is possible by now, and close the file."""
        self._write(new=0)
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _write(self, *, new: int) -> bool:
        """Write all that waits, of which the last `new` lines have just come; False if some of it could not be."""
        late = len(self._waiting) - new
        try:
            while self._waiting:
                if self._descriptor is None:
                    self._open()
                assert self._descriptor is not None
                # A truncated line would corrupt this one; a newline separates them.
                data = b"\n" + self._waiting[0] if self._torn else self._waiting[0]
                written = os.write(self._descriptor, data)
                self._torn = written < len(data)
                if self._torn:
                    self._tell("only part of a line was written")
                    return False
                self._waiting.popleft()
        except OSError as error:
            self._tell(str(error))
            return False
        self._late += late
        self.problem = None
        return True

    def _open(self) -> None:
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._torn = _ends_torn(self.path)

    def _tell(self, reason: str) -> None:
        if self.problem is None:
            self.problem = f"{self.path} cannot be written ({reason}); the run continues, and its lines wait"
            logger.warning("%s", self.problem)


class JsonlTail:
    """Reads the complete lines added to a file since the last read, so it can follow a growing file.

    Lines that are not JSON objects (a writer that was killed, then restarted) are skipped and counted in `torn`.
    """

    def __init__(self, path: Path, offset: int = 0, numbers: bool = True) -> None:
        self.path = path
        self.offset = offset
        self.torn = 0
        self._parse = decode if numbers else json.loads

    def new(self) -> list[dict[str, object]]:
        """The objects of new complete lines; [] without a file.

        Raises:
            OSError: the file exists but cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self.offset:  # replaced by a shorter copy: read it again
                    self.offset = 0
                file.seek(self.offset)
                data = file.read()
        except FileNotFoundError:
            return []
        complete = data.rfind(b"\n") + 1
        self.offset += complete
        lines = data[:complete].split(b"\n")
        return [record for line in lines if (record := self._object(line)) is not None]

    def _object(self, line: bytes) -> dict[str, object] | None:
        if not line.strip():
            return None
        try:
            record = self._parse(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            self.torn += 1
            return None
        return record


class MetricsTail:
    """Reads new lines of metrics.jsonl like `JsonlTail`, but only the numbers of each line."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self._lines = JsonlTail(path, offset)

    def new(self) -> list[dict[str, float]]:
        """New complete lines: `step`, `time`, and metrics by name.

        Raises:
            OSError: the file exists but cannot be read.
        """
        return [_numbers(line) for line in self._lines.new()]


def _numbers(line: Mapping[str, object]) -> dict[str, float]:
    return {name: value for name, value in line.items() if isinstance(value, int | float)}


def read_jsonl(path: Path, numbers: bool = True) -> list[dict[str, object]]:
    """All complete lines of a file, in order; a torn last line is skipped.

    `numbers=False` keeps texts such as "NaN" unchanged, which samples need.
    """
    return JsonlTail(path, numbers=numbers).new()


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _plain(value: Any) -> Any:
    """Convert types that json does not support: numbers of numpy and torch by `item()`, everything else to text."""
    try:
        return value.item()
    except (AttributeError, TypeError, ValueError, RuntimeError):
        return str(value)


def _spell_out(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): _spell_out(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_spell_out(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    return _spell_out(_plain(value))


def _read_back(value: Any) -> Any:
    if isinstance(value, str):
        return _NOT_FINITE.get(value, value)
    if isinstance(value, dict):
        return {key: _read_back(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_read_back(item) for item in value]
    return value
