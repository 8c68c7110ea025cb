"""Reading untrusted run folders: links are not followed, only regular files are opened, sizes are limited."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Larger files are not shown on a page.
MOST_TEXT_BYTES = 4 * 1024**2
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class UnsafePathError(OSError):
    """A path that is not a regular file or folder inside the expected folder."""


@contextmanager
def opened_below(folder: Path, *parts: str) -> Iterator[int]:
    """A descriptor of the regular file `folder/part/part…`; no part is a link, so the file cannot be elsewhere.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be read, is or is behind a link, or is not a regular file.
    """
    descriptor = _walk(folder, parts, os.O_RDONLY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsafePathError(f"{'/'.join(parts)} is not a plain file")
        yield descriptor
    finally:
        os.close(descriptor)


def names_below(folder: Path, *parts: str, most: int = 10_000) -> list[str]:
    """Sorted names in `folder/part…`, at most `most`; [] if the folder does not exist."""
    try:
        descriptor = _walk(folder, parts, os.O_DIRECTORY)
    except OSError:
        return []
    try:
        with os.scandir(descriptor) as entries:
            return sorted(entry.name for entry, _ in zip(entries, range(most), strict=False))
    finally:
        os.close(descriptor)


def stat_below(folder: Path, *parts: str) -> os.stat_result | None:
    """The stat result of a regular file, without following links; None if it does not exist."""
    try:
        descriptor = _walk(folder, parts[:-1], os.O_DIRECTORY)
    except OSError:
        return None
    try:
        found = os.stat(_checked(parts[-1]), dir_fd=descriptor, follow_symlinks=False)
    except (OSError, ValueError):
        return None
    finally:
        os.close(descriptor)
    return found if stat.S_ISREG(found.st_mode) else None


def read_below(folder: Path, *parts: str, most: int = MOST_TEXT_BYTES, tail: bool = False) -> bytes:
    """The first (`tail`: the last) `most` bytes of a file.

    Raises:
        OSError: as `opened_below`.
    """
    with opened_below(folder, *parts) as descriptor:
        begin = max(0, os.fstat(descriptor).st_size - most) if tail else 0
        return pread(descriptor, most, begin)


def text_below(folder: Path, *parts: str, most: int = MOST_TEXT_BYTES) -> str | None:
    """A file as text, at most `most` bytes; None if it cannot be read."""
    try:
        data = read_below(folder, *parts, most=most)
    except (OSError, ValueError):
        return None
    return data.decode("utf-8", errors="replace")


def pread(descriptor: int, count: int, offset: int) -> bytes:
    """`count` bytes, fewer only at the end of the file."""
    pieces = []
    while count > 0:
        piece = os.pread(descriptor, min(count, 1 << 22), offset)
        if not piece:
            break
        pieces.append(piece)
        count, offset = count - len(piece), offset + len(piece)
    return b"".join(pieces)


def json_lines(data: bytes) -> list[dict[str, object]]:
    """The JSON objects among the lines; other lines are skipped."""
    found = []
    for line in data.split(b"\n"):
        try:
            value = json.loads(line) if line.startswith(b"{") else None
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _walk(folder: Path, parts: Sequence[str], flags: int) -> int:
    """Open a path part by part, without following links."""
    descriptor = os.open(folder, _FLAGS | os.O_DIRECTORY)
    try:
        for index, part in enumerate(parts):
            last = index == len(parts) - 1
            following = os.open(_checked(part), _FLAGS | (flags if last else os.O_DIRECTORY), dir_fd=descriptor)
            os.close(descriptor)
            descriptor = following
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _checked(part: str) -> str:
    if part in ("", ".", "..") or "/" in part or "\0" in part:
        raise UnsafePathError(f"{part!r} is not a file name")
    return part
