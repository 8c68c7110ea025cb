"""Lists of documents that no run may read: the SHA-256 of their content, one a line (`data.exclude`)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from shardyard.errors import DataError

_HASH = re.compile(r"^(?:sha256:)?([0-9a-f]{64})$", re.IGNORECASE)


def read_exclusion(path: str) -> frozenset[str]:
    """The hashes of a list. A line is a hash, or a JSON object with `sha256`; empty lines and # comments are left out.

    Raises:
        DataError: the list cannot be read, or a line names no hash.
    """
    file = Path(path).expanduser()
    try:
        stamp = file.stat()
        return _read(file, stamp.st_mtime_ns, stamp.st_size)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"data.exclude: {path} cannot be read ({error}), so the documents that it keeps out are not known."
        ) from error


def exclusion_digest(hashes: Iterable[str]) -> str:
    """What tells one list from another, whatever its lines look like."""
    return hashlib.sha256("\n".join(sorted(hashes)).encode()).hexdigest()


@lru_cache(maxsize=8)
def _read(file: Path, mtime_ns: int, size: int) -> frozenset[str]:
    """Once, however many sources and streams there are."""
    found = set[str]()
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = _HASH.match(_of_json(text) if text.startswith("{") else text)
        if match is None:
            raise DataError(
                f"data.exclude: line {number} of {file} names no SHA-256 of 64 digits; "
                "`shardyard data forget LIST --exclude FILE` writes such a list from files and rows, texts or patterns."
            )
        found.add(match[1].lower())
    return frozenset(found)


def _of_json(text: str) -> str:
    try:
        value = json.loads(text)
    except ValueError:
        return ""
    digest = value.get("sha256") if isinstance(value, dict) else None
    return digest if isinstance(digest, str) else ""
