"""Rows of local files by their number, as Arrow tables like those that `datasets` streams."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from shardyard.data.index.cells import Cells
from shardyard.data.index.columns import ArrowRows, ParquetRows
from shardyard.data.index.offsets import background, offsets_of
from shardyard.data.index.records import Finder, IrregularError, JsonLines
from shardyard.data.index.texts import Documents
from shardyard.data.index.unpacked import copy_of, plan_copies
from shardyard.data.quirks import ShardFile, generator_of, shard_files
from shardyard.data.tables.cells import CellTables, Dialect, known_header
from shardyard.data.tables.columns import ArrowTables, ParquetTables
from shardyard.data.tables.lines import JsonTables
from shardyard.data.tables.table import Records, problems_of, records_of, with_problem_texts
from shardyard.data.tables.texts import TextTables
from shardyard.recipe.seen_columns import UTF16
from shardyard.recipe.sources.files import compression

# Records of more bytes together are parsed in several parts.
_PARSED_BYTES = 1 << 25
_OPEN_FILES = 2


class FileRows(Protocol):
    """The rows of one file. Its methods raise as those of `IndexedFiles`."""

    def known(self, wanted: int) -> int:
        """The number of rows, counted at least up to `wanted` if there are as many."""

    def table(self, numbers: Sequence[int]) -> pa.Table:
        """Some rows by ascending numbers."""


class RecordRows:
    """The rows of a file, or of its unpacked copy, whose records are found by their bytes."""

    def __init__(self, records: Records, path: str, copy: Path | None = None) -> None:
        assert records.parse is not None, "the format does not parse records"
        self._parse, self._path = records.parse, path
        self._of_json = isinstance(records.format, JsonTables)
        with open(copy or path, "rb") as content:
            if content.read(2) in UTF16:
                raise IrregularError
        try:
            self._offsets = offsets_of(copy or Path(path), finder_of(records.format, path))
        except OSError as error:
            raise IrregularError from error  # Read from its start, the file gives the message.
        if not self._offsets.is_complete:
            background.complete(self._offsets)

    def known(self, wanted: int) -> int:
        return self._offsets.known(wanted)

    def table(self, numbers: Sequence[int]) -> pa.Table:
        # A file that was closed since these rows were counted is searched again.
        self._offsets.known(numbers[-1] + 1)
        lines = self._offsets.read(numbers)
        parts, first, size = [], 0, 0
        for index, line in enumerate(lines):
            if size and size + len(line) > _PARSED_BYTES:
                parts.append(self._parsed(lines[first:index]))
                first, size = index, 0
            size += len(line)
        parts.append(self._parsed(lines[first:]))
        return self._with_lines(pa.concat_tables(parts), numbers)

    def _with_lines(self, table: pa.Table, numbers: Sequence[int]) -> pa.Table:
        """The table with the line of each row of JSON that cannot be read."""
        problems = problems_of(table) if self._of_json else None
        if problems is None:
            return table
        for row, problem in enumerate(problems):
            line = self._offsets.line(numbers[row]) if problem is not None else None
            problems[row] = f"line {line}: {problem}" if line is not None else problem
        return with_problem_texts(table, problems)

    def _parsed(self, lines: list[bytes]) -> pa.Table:
        table = self._parse(lines, self._path)
        if table.num_rows != len(lines):
            self._offsets.distrust()
            raise IrregularError
        return table


class IndexedFiles:
    """The rows of some local files, one file after the other, with the columns that are read.

    Raises:
        IrregularError: (methods) the records of a file cannot be found by its bytes.
        DataError: (methods) a file was changed while it was read.
    """

    def __init__(self, files: Sequence[ShardFile], rows_of: Callable[[ShardFile], FileRows]) -> None:
        self.files, self._rows_of = files, rows_of
        # The files that are open; a window of rows may begin in one and end in the next.
        self._open: dict[int, FileRows] = {}

    def known(self, file: int, wanted: int) -> int:
        """The number of rows of a file, counted at least up to `wanted` if there are as many."""
        return self._rows(file).known(wanted)

    def table(self, file: int, numbers: Sequence[int]) -> pa.Table:
        """Some rows of a file, by ascending numbers, which it has."""
        return self._rows(file).table(numbers)

    def close(self) -> None:
        """Close the open files."""
        self._open.clear()

    def _rows(self, file: int) -> FileRows:
        if file not in self._open:
            rows = self._rows_of(self.files[file])
            while len(self._open) >= _OPEN_FILES:
                del self._open[next(iter(self._open))]
            self._open[file] = rows
        return self._open[file]


def finder_of(form: object, path: str) -> Finder:
    """What finds the records of a file."""
    if isinstance(form, CellTables):
        return Cells(known_header(path)[1] if os.path.getsize(path) else Dialect(","))
    return Documents(form) if isinstance(form, TextTables) else JsonLines()


def indexed_files(dataset: Any) -> IndexedFiles | None:
    """The files of a streamed dataset, if they are local ones, or Parquet, whose rows can be read by their number."""
    files = shard_files(dataset)
    owner = getattr(generator_of(dataset), "__self__", None)
    if isinstance(owner, ParquetTables):
        return IndexedFiles(files, lambda file: ParquetRows(owner, file.path, file.row_groups))
    if not files or any("://" in file.path for file in files):
        return None
    records = records_of(dataset)
    if any(compression(file.path) is not None for file in files):
        return None if records is None else _unpacked_files(files, records)
    form = None if records is None else records.format
    if records is not None and records.parse is not None:
        return IndexedFiles(files, lambda file: RecordRows(records, file.path))
    if isinstance(form, ArrowTables):
        return IndexedFiles(files, lambda file: ArrowRows(form, file.path))
    return None


def _unpacked_files(files: Sequence[ShardFile], records: Records) -> IndexedFiles | None:
    """Compressed files that have copies."""
    if not records.unpack or len(files) > 1:
        return None
    copy = copy_of(files[0].path)
    return None if copy is None else IndexedFiles(files, lambda file: RecordRows(records, file.path, copy))


def unpack_later(dataset: Any, streams: int) -> str | None:
    """Begin to unpack the compressed files of a source that streams share or have one each of; a note for people."""
    records, files = records_of(dataset), shard_files(dataset)
    if records is None or records.parse is None or not records.unpack or len(files) > streams:
        return None
    paths = [file.path for file in files if "://" not in file.path and compression(file.path) is not None]
    return plan_copies(paths) if paths else None
