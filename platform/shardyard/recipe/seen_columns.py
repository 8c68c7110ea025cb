"""The columns of local files, read from their beginning, so that a wrong name is found before anything starts.

Reads only the standard library's formats and the footer of Parquet; whatever cannot be read here is left to the run.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import itertools
import json
import lzma
import os
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import IO, Any, cast

from shardyard.errors import DataError
from shardyard.recipe.sources.documents import rows_of_document
from shardyard.recipe.sources.files import compression, file_kind, suffix
from shardyard.recipe.sources.recognise import Recognised, recognise

# Enough to see optional keys, and fast.
PEEK_CHARACTERS = 1 << 18
PEEK_ROWS = 64
# Byte-order marks of UTF-16.
UTF16 = (b"\xff\xfe", b"\xfe\xff")
_EMPTY = ("is empty", "has a header and no rows", "is a pointer")
_LFS = b"version https://git-lfs"
_OPEN: dict[str | None, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}


@dataclass(frozen=True)
class Seen:
    """What a path names: its columns in their order, empty if they cannot be read here, and the file that has them;
    and why it cannot be read."""

    columns: tuple[str, ...] = ()
    problem: str | None = None
    file: str | None = None


def seen_columns(path: str, split: str = "train") -> list[str]:
    """The columns of the first file of a path; empty if they cannot be read here."""
    return list(look(path, split).columns)


def look(path: str, split: str) -> Seen:
    """The columns of local data, from its names or the beginning of its first file that has any."""
    if "://" in path:
        return Seen()
    try:
        found = recognise(path, split)
    except DataError as error:
        return Seen(problem=str(error))
    except (OSError, ValueError):
        return Seen()
    if found is None:
        return Seen()
    return _of_layout(found) or _first(found)


def _of_layout(found: Recognised) -> Seen | None:
    if found.layout == "LibriSpeech":
        return Seen(("audio", "text", "id"))
    if found.layout in ("ImageFolder", "AudioFolder"):
        if found.metadata is not None:
            return replace(_columns(found.metadata), file=found.metadata)
        return Seen(("image" if found.kind == "picture" else "audio", *(("label",) if _has_classes(found) else ())))
    return Seen(("text",)) if found.kind == "text" else None


def _has_classes(found: Recognised) -> bool:
    folders = {os.path.dirname(file) for file in found.files}
    names = {os.path.basename(folder) for folder in folders}
    return len(names) > 1 and len({folder.count(os.sep) for folder in folders}) == 1


def _first(found: Recognised) -> Seen:
    """The columns of the first file that has any; what is wrong with a file matters if none has."""
    seen = told = Seen()
    for file in found.files:
        seen = replace(_columns(file), file=file)
        if seen.columns and seen.problem is None:
            return seen
        if seen.problem is not None and told.problem is None:
            told = replace(seen, problem=_named(file, seen.problem))
        if not seen.problem or not seen.problem.startswith(_EMPTY):
            break
    return told if told.problem is not None else seen


def _named(file: str, problem: str) -> str:
    return problem if problem.startswith(file) else f"{file} {problem}"


def _columns(file: str) -> Seen:
    kind = file_kind(file)
    try:
        if (problem := damage(file)) is not None:
            return Seen(problem=problem)
        if kind == "parquet":
            import pyarrow.parquet as pq

            try:
                return Seen(tuple(pq.read_schema(file).names))
            except (OSError, ValueError) as error:
                return Seen(problem=f"cannot be read as Parquet: {str(error).splitlines()[0]}")
        if kind == "tar":
            return _members(file)
        if kind not in ("json", "csv") or compression(file) == ".zst":
            return Seen()
        with opened_text(file) as text:
            return _header(text, suffix(file)) if kind == "csv" else _keys(file, text)
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError) as error:
        return Seen(problem=f"cannot be decompressed: {error}")
    # The errors of pyarrow are also OSError or ValueError.
    except (OSError, ValueError, csv.Error, tarfile.TarError):
        return Seen()


def damage(file: str) -> str | None:
    """Why a file cannot hold any rows, by its first bytes; None if it may."""
    with open(file, "rb") as content:
        beginning = content.read(len(_LFS))
    if not beginning:
        return "is empty"
    return "is a pointer of Git LFS and not the file itself; run `git lfs pull`" if beginning == _LFS else None


def opened_text(file: str) -> IO[str]:
    """The text of a file, decompressed."""
    # As `datasets` does, a byte-order mark is no part of the first name.
    opener = _OPEN.get(compression(file), open)
    with opener(file, "rb") as beginning:
        if beginning.read(2) in UTF16:
            return cast("IO[str]", opener(file, "rt", encoding="utf-16", errors="replace"))
    return cast("IO[str]", opener(file, "rt", encoding="utf-8-sig", errors="replace"))


def _header(text: IO[str], end: str) -> Seen:
    line = text.readline()
    while line and not line.strip():
        line = text.readline()
    if not line:
        return Seen(problem="is empty: it has no header of columns")
    names = next(csv.reader(io.StringIO(line), delimiter=delimiter_of(line, end)), [])
    empty = not any(map(str.strip, itertools.islice(text, PEEK_ROWS)))
    return Seen(tuple(name.strip() for name in names), "has a header and no rows" if empty else None)


def delimiter_of(header: str, end: str) -> str:
    """What divides the cells of a file with this header and suffix."""
    marks = "\t" if end == ".tsv" else ",;\t|"
    return next((mark for mark in marks if mark in header), marks[0])


def _keys(file: str, text: IO[str]) -> Seen:
    """The keys of the first objects: of one on each line, or of a list of objects that ends within the part read."""
    beginning = text.read(PEEK_CHARACTERS)
    whole = len(beginning) < PEEK_CHARACTERS
    start = beginning.lstrip()
    if start.startswith("["):
        found = json.loads(beginning) if whole else []
        return Seen(_all_keys(found[:PEEK_ROWS]))
    if whole and (rows_within := document_rows(start)) is not None:
        return Seen(_all_keys(list(rows_within[:PEEK_ROWS])))
    lines = beginning.splitlines(keepends=True)
    lines = lines if whole else lines[:-1]
    rows, problem = [], None
    for number, line in enumerate(lines[:PEEK_ROWS], 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            problem = problem or f"{file}: line {number} is no JSON: {error.msg} at character {error.colno}"
    keys = _all_keys(rows)
    # A file of one object on several lines has no row on its first one.
    return Seen(keys, None if keys or start.startswith("{\n") else problem)


def document_rows(text: str) -> list[dict[str, object]] | None:
    """The rows of a document of a known kind (`sources/documents.py`); None if a text is none."""
    try:
        return rows_of_document(json.loads(text))
    except ValueError:
        return None


def _all_keys(rows: list[object]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(key) for row in rows if isinstance(row, dict) for key in row))


def _members(file: str) -> Seen:
    """The suffixes of the first members of a tar file; fields of JSON are not known here."""
    with tarfile.open(file, "r|") as archive:
        names = [member.name.rpartition("/")[2] for member in itertools.islice(archive, PEEK_ROWS) if member.isfile()]
    return Seen(tuple(dict.fromkeys(name.partition(".")[2].lower() for name in names if "." in name.strip("."))))
