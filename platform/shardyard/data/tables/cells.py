"""CSV and TSV as tables of texts: what a cell holds is decided by who reads it, never by its words or digits."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import datasets
import pyarrow as pa

from shardyard.data.tables.fit import whole
from shardyard.data.tables.opened import opened
from shardyard.data.tables.table import table_of
from shardyard.errors import DataError
from shardyard.recipe.sources.files import suffix

# Rows of a table, as `datasets` reads them; the tables are part of its resumable state.
TABLE_ROWS = 10_000
_PEEK_CHARACTERS = 1 << 18
_PEEK_ROWS = 65
# A text may be longer than the 128 KiB that the csv module allows.
csv.field_size_limit(1 << 30)


@dataclass(frozen=True)
class Dialect:
    """How the cells of a file are divided."""

    delimiter: str
    quoted: bool = True

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """The records of lines; it also has `line_num`."""
        if self.quoted:
            return csv.reader(lines, delimiter=self.delimiter)
        return csv.reader(lines, delimiter=self.delimiter, quoting=csv.QUOTE_NONE)


def dialect_of(path: str, beginning: str) -> Dialect:
    """The dialect of a file: commas in .csv, or semicolons, tabs or bars if its header has no comma; tabs in .tsv.

    Quotes of a .tsv are part of its texts if a cell begins with one and does not end with one.
    """
    header = beginning.partition("\n")[0]
    if suffix(path) != ".tsv":
        present = [mark for mark in ",;\t|" if mark in header]
        return Dialect(present[0] if present else ",")
    lines = beginning.splitlines(keepends=True)
    whole = lines[:-1] if len(beginning) >= _PEEK_CHARACTERS else lines
    quoted, plain = Dialect("\t"), Dialect("\t", quoted=False)
    opened = [cell for record in plain.reader(iter(whole)) for cell in record if cell.startswith('"')]
    if all(len(cell) > 1 and cell.endswith('"') for cell in opened) or not _is_even(plain, whole):
        return quoted
    return plain


def _is_even(dialect: Dialect, lines: Sequence[str]) -> bool:
    """Whether all rows have the number of cells of the header."""
    return len({len(record) for record in dialect.reader(iter(lines)) if record}) <= 1


def header_of(path: str) -> tuple[list[str], Dialect]:
    """The columns of a file, and its dialect.

    Raises:
        DataError: the file is empty.
    """
    with opened(path) as file:
        text = _text(file)
        beginning = text.read(_PEEK_CHARACTERS)
    dialect = dialect_of(path, beginning)
    header = next((record for record in dialect.reader(io.StringIO(beginning, newline="")) if record), [])
    if not header:
        raise DataError(f"{path} is empty: it has no header of columns.")
    return [name.strip() for name in header], dialect


def known_header(path: str) -> tuple[list[str], Dialect]:
    """As `header_of`, for a local file that is asked for often."""
    status = os.stat(path)
    return _known_header(path, status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _known_header(path: str, *_: int) -> tuple[list[str], Dialect]:
    return header_of(path)


def _text(file: IO[bytes]) -> io.TextIOWrapper:
    # Bytes that are no UTF-8 survive, so that their rows can be named.
    return io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")


def cell_features(path: str) -> datasets.Features:
    """The columns of a file, typed by what most of their first cells hold: whole numbers, numbers or texts.

    This tells what a column may be used for; its cells are stored as texts.

    Raises:
        DataError: the file is empty.
    """
    header, dialect = header_of(path)
    with opened(path) as file:
        records = (record for _, record, _ in _numbered(dialect.reader(_text(file))))
        first = list(itertools.islice(records, _PEEK_ROWS))[1:]
    cells = ([row[place] for row in first if place < len(row)] for place in range(len(header)))
    return datasets.Features({name: datasets.Value(type_of(some)) for name, some in zip(header, cells, strict=True)})


def type_of(cells: Sequence[str]) -> str:
    filled = [cell for cell in cells if cell.strip()]
    for name, is_one in (("int64", _is_whole), ("float64", _is_number)):
        if filled and 2 * sum(map(is_one, filled)) > len(filled):
            return name
    return "string"


def _is_whole(cell: str) -> bool:
    try:
        whole(cell)
    except (ValueError, OverflowError):
        return False
    return True


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


@dataclass(frozen=True)
class CellTables:
    """The tables of CSV and TSV files: these columns, all of texts."""

    names: Sequence[str]

    @property
    def features(self) -> datasets.Features:
        """The features of the columns."""
        return datasets.Features({name: datasets.Value("string") for name in self.names})

    def tables(self, path: str) -> Iterator[pa.Table]:
        """The tables of a file.

        Raises:
            DataError: the file lacks a column.
        """
        if "://" not in path and not os.path.getsize(path):
            return
        header, dialect = header_of(path)
        places = [self._place(path, header, name) for name in self.names]
        with opened(path) as file:
            records = dialect.reader(_text(file))
            rows = _numbered(records)
            next(rows, None)
            while some := list(itertools.islice(rows, TABLE_ROWS)):
                yield self._table(some, places, len(header))

    def of_records(self, records: Sequence[bytes], path: str) -> pa.Table:
        """The table of some records of a file, each with its line end.

        Raises:
            DataError: the file lacks a column.
        """
        header, dialect = known_header(path)
        places = [self._place(path, header, name) for name in self.names]
        lines = io.StringIO(b"".join(records).decode(errors="surrogateescape"), newline="")
        rows = [(None, record, problem) for _, record, problem in _numbered(dialect.reader(lines))]
        return self._table(rows, places, len(header))

    def _place(self, path: str, header: Sequence[str], name: str) -> int:
        if name not in header:
            raise DataError(f"{path} has no column {name!r}; it has {', '.join(header)}.")
        return list(header).index(name)

    def _table(
        self, rows: Sequence[tuple[int | None, list[str], str | None]], places: Sequence[int], width: int
    ) -> pa.Table:
        columns: list[list[str | None]] = [[] for _ in places]
        problems: list[str | None] = []
        for number, record, problem in rows:
            cells = [record[place] if place < len(record) else None for place in places]
            if problem is None and len(record) > width:
                problem = f"{len(record)} cells under {width} columns"
            if problem is None and any(cell is not None and not _is_utf8(cell) for cell in cells):
                problem = "no UTF-8"
                cells = [cell if cell is None or _is_utf8(cell) else _repaired(cell) for cell in cells]
            elif problem is not None:
                cells = [None] * len(cells)
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
            problems.append(problem if problem is None or number is None else f"line {number}: {problem}")
        return table_of(self.features, dict(zip(self.names, columns, strict=True)), problems)


def _numbered(records: Iterator[list[str]]) -> Iterator[tuple[int, list[str], str | None]]:
    """Records that are not blank, each with the number of its last line, and what is wrong with it."""
    while True:
        try:
            record = next(records)
        except StopIteration:
            return
        except csv.Error as error:
            yield records.line_num, [], str(error)  # type: ignore[attr-defined]
            continue
        if record:
            yield records.line_num, record, None  # type: ignore[attr-defined]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _repaired(text: str) -> str:
    return text.encode(errors="surrogateescape").decode(errors="replace")
