"""Reading untrusted run folders: links are not followed, only plain files are opened, sizes are limited."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Larger files are not shown in a page.
MOST_TEXT_BYTES = 4 * 1024**2
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class UnsafePathError(OSError):
    """A path that is not a plain file or folder below the one that it should lie in."""


@contextmanager
def opened_below(folder: Path, *parts: str) -> Iterator[int]:
    """A descriptor of the plain file `folder/part/part…`; no part is a link, so the file lies where it seems to.

    Raises:
        FileNotFoundError: it is not there.
        OSError: it cannot be read, is a link or lies behind one, or is not a plain file.
    """
    descriptor = _walk(folder, parts, os.O_RDONLY)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise UnsafePathError(f"{'/'.join(parts)} is not a plain file")
        yield descriptor
    finally:
        os.close(descriptor)


def names_below(folder: Path, *parts: str, most: int = 10_000) -> list[str]:
    """Names of what lies in `folder/part…`, sorted, at most `most`; [] where there is no such folder."""
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
    """Of a plain file, without following links; None where there is none."""
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
    """A file as text, at most `most` bytes of it; None where it cannot be read."""
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
    """The JSON objects among the lines; others are left out."""
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
    """Open part by part, each without following a link."""
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
