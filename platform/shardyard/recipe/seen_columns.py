"""The columns of local files, read from their beginning, so that a wrong name is found before anything starts.

Reads only the standard library's formats and the footer of Parquet; whatever cannot be read here is left to the run.
"""

from __future__ import annotations

import csv
import glob
import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

# Enough to see optional keys, and fast.
PEEK_CHARACTERS = 1 << 18
PEEK_ROWS = 64


def seen_columns(path: str) -> list[str]:
    """The columns of the first file that matches `path`, in their order; empty if they cannot be read here."""
    try:
        for file in _files(path):
            if columns := _columns(file):
                return columns
    # The errors of pyarrow are also OSError or ValueError.
    except (OSError, ValueError, csv.Error):
        pass
    return []


def _files(path: str) -> Iterator[str]:
    if "://" in path:
        return
    for match in sorted(glob.glob(os.path.expanduser(path), recursive=True)):
        if os.path.isdir(match):
            yield from sorted(str(file) for file in Path(match).rglob("*") if file.is_file())
        else:
            yield match


def _columns(file: str) -> list[str]:
    suffix = Path(file.removesuffix(".gz")).suffix.lower()
    if suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_schema(file).names)
    if suffix not in (".jsonl", ".json", ".csv"):
        return []
    with _opened(file) as text:
        return _header(text) if suffix == ".csv" else _keys(text)


def _opened(file: str) -> IO[str]:
    # As `datasets` does, a byte-order mark is no part of the first name.
    if file.endswith(".gz"):
        return gzip.open(file, "rt", encoding="utf-8-sig", errors="replace")
    return open(file, encoding="utf-8-sig", errors="replace")


def _header(text: IO[str]) -> list[str]:
    return next(csv.reader(text), [])


def _keys(text: IO[str]) -> list[str]:
    """The keys of the first objects: of one on each line, or of a list of objects that ends within the part read."""
    beginning = text.read(PEEK_CHARACTERS)
    lines = beginning.splitlines(keepends=True)
    if beginning.lstrip().startswith("["):
        found = json.loads(beginning) if len(beginning) < PEEK_CHARACTERS else []
    else:
        whole = lines if len(beginning) < PEEK_CHARACTERS else lines[:-1]
        found = [json.loads(line) for line in whole[:PEEK_ROWS] if line.strip()]
    return list(dict.fromkeys(key for row in found[:PEEK_ROWS] if isinstance(row, dict) for key in row))
