"""Rows of Parquet and Arrow files by their number; a row group is decoded once for all who read it at a time."""

from __future__ import annotations

import bisect
import itertools
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from shardyard.data.index.records import IrregularError
from shardyard.data.tables.columns import ArrowTables, ParquetTables

_MAGIC = b"ARROW1"


def taken(table: pa.Table, numbers: Sequence[int]) -> pa.Table:
    """Rows of a table by ascending numbers."""
    part = table.slice(numbers[0], numbers[-1] + 1 - numbers[0])
    return part if part.num_rows == len(numbers) else part.take([number - numbers[0] for number in numbers])


class _Shared:
    """What the readers of the same columns hold in common: open files, and row groups while one of them has them."""

    def __init__(self, tables: ParquetTables) -> None:
        self.tables = tables
        self._files: weakref.WeakValueDictionary[str, _File] = weakref.WeakValueDictionary()
        self._groups: weakref.WeakValueDictionary[tuple[str, int], pa.Table] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def file(self, path: str) -> _File:
        with self._lock:
            found = self._files.get(path)
            if found is None:
                found = self._files[path] = _File(self.tables.opened(path))
            return found

    def group(self, path: str, group: int, most: int) -> pa.Table:
        """A row group, which is read in tables of at most `most` rows."""
        file = self.file(path)
        with self._lock:
            table = self._groups.get((path, group))
            if table is None:
                table = pa.concat_tables(self.tables.group_tables(file.fragment, path, group, most))
                self._groups[(path, group)] = table
            return table


class _File:
    def __init__(self, fragment: Any) -> None:
        self.fragment = fragment
        self.sizes: list[int] = [group.num_rows for group in fragment.row_groups]


_shared: weakref.WeakValueDictionary[int, _Shared] = weakref.WeakValueDictionary()
_sharing = threading.Lock()


class ParquetRows:
    """The rows of a Parquet file, or of some of its row groups."""

    def __init__(self, tables: ParquetTables, path: str, groups: Sequence[int] | None) -> None:
        with _sharing:
            found = _shared.get(id(tables))
            if found is None:
                found = _shared[id(tables)] = _Shared(tables)
        self._shared, self._path = found, path
        self._file = found.file(path)
        self._groups = list(range(len(self._file.sizes))) if groups is None else list(groups)
        sizes = [self._file.sizes[group] for group in self._groups]
        self._most = sizes[0] if sizes else 1
        self._begins: list[int] = [0, *itertools.accumulate(sizes)]
        # The groups of the last two reads: a window may begin in one group and end in the next.
        self._held: dict[int, pa.Table] = {}
        self._before: dict[int, pa.Table] = {}

    def known(self, _: int) -> int:
        return self._begins[-1]

    def table(self, numbers: Sequence[int]) -> pa.Table:
        parts = []
        first = 0
        before, self._before = self._before, {}
        self._held |= before
        while first < len(numbers):
            group = bisect.bisect_right(self._begins, numbers[first]) - 1
            begin, end = self._begins[group], self._begins[group + 1]
            after = bisect.bisect_left(numbers, end, lo=first)
            parts.append(taken(self._group(group), [number - begin for number in numbers[first:after]]))
            first = after
        self._held = before
        return pa.concat_tables(parts)

    def _group(self, group: int) -> pa.Table:
        table = self._held.get(group)
        if table is None:
            table = self._shared.group(self._path, self._groups[group], self._most)
        self._before[group] = table
        return table


class ArrowRows:
    """The rows of an Arrow file, of either format, which is mapped into memory."""

    def __init__(self, tables: ArrowTables, path: str) -> None:
        self._tables = tables
        self._file = pa.memory_map(path)
        is_file = self._file.read(len(_MAGIC)) == _MAGIC
        self._file.seek(0)
        self._reader = pa.ipc.open_file(self._file) if is_file else None
        self._schema = None if is_file else pa.ipc.read_schema(self._file)
        # The first row of each known batch, and of the next one; in a stream also the place of each.
        self._begins, self._places = [0], [] if is_file else [self._file.tell()]
        self._is_complete = False

    def known(self, wanted: int) -> int:
        while self._begins[-1] < wanted and not self._is_complete:
            batch = self._batch(len(self._begins) - 1)
            if batch is None:
                self._is_complete = True
                break
            self._begins.append(self._begins[-1] + batch.num_rows)
            if self._reader is None:
                self._places.append(self._file.tell())
        return self._begins[-1]

    def table(self, numbers: Sequence[int]) -> pa.Table:
        parts = []
        first = 0
        while first < len(numbers):
            number = bisect.bisect_right(self._begins, numbers[first]) - 1
            begin = self._begins[number]
            after = bisect.bisect_left(numbers, self._begins[number + 1], lo=first)
            batch = pa.Table.from_batches([self._batch(number)])
            parts.append(self._tables.checked(taken(batch, [one - begin for one in numbers[first:after]])))
            first = after
        return pa.concat_tables(parts)

    def _batch(self, number: int) -> pa.RecordBatch | None:
        if self._reader is not None:
            return self._reader.get_batch(number) if number < self._reader.num_record_batches else None
        self._file.seek(self._places[number])
        try:
            message = pa.ipc.read_message(self._file)
        except EOFError:
            return None
        if message.type != "record batch":
            raise IrregularError  # Values of a dictionary, which later batches may replace.
        return pa.ipc.read_record_batch(message, self._schema)
