"""A share's examples, table by table: as `datasets` streams them, or by their numbers where they are indexed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import pyarrow as pa

from shardyard.data.index.rows import IndexedFiles
from shardyard.data.sources.sources import stored_examples, top_columns
from shardyard.data.stream.share import START, Cursor, Share

# Examples fetched at once. It affects speed and memory, never the order.
TABLE_ROWS = 256


@dataclass(frozen=True)
class Chunk:
    """Some consecutive examples of a share's dataset, of which `rows` are the share's: index in the chunk, and value.

    `cursor` is the place at which the chunk begins, `length` the number of examples that it spans.
    """

    cursor: Cursor
    length: int
    rows: list[tuple[int, Any]]


@dataclass(frozen=True)
class RowRange:
    """Rows of an indexed file, with the number of examples of the share's dataset before that file."""

    file: int
    before: int
    rows: range

    @property
    def places(self) -> range:
        """The numbers of the rows in the share's dataset."""
        return range(self.before + self.rows.start, self.before + self.rows.stop, self.rows.step)


class Tables(Protocol):
    """Reads a share from a cursor to its end."""

    def seek(self, cursor: Cursor) -> None:
        """Continue at `cursor`."""

    def next(self, wanted: int) -> Chunk | None:
        """The next chunk, with about `wanted` rows of the share or fewer; None at the end.

        A failure leaves the place unchanged, so that a retry repeats nothing.
        """

    def close(self) -> None:
        """Close open files; further reads need `seek`."""


class TableStream:
    """The tables of a dataset from its start, or from a state of `datasets`, each with the place at which it begins."""

    def __init__(self, dataset: Any, start: Cursor) -> None:
        self._plain = dataset
        self._tables: Iterator[pa.Table] | None = None
        self._dataset: Any = None
        self._cursor, self._length = start, 0

    @property
    def next_example(self) -> int:
        """The number of the first example of the next table."""
        return self._cursor.example + self._length

    def pull(self) -> tuple[Cursor, pa.Table] | None:
        """The next table; None at the end. A failure leaves the place unchanged."""
        state, example = self._cursor.state, self.next_example
        if self._tables is None:
            self._dataset = self._plain.with_format("arrow")
            if state is not None:
                self._dataset.load_state_dict(state)
            self._tables = self._dataset.iter(batch_size=TABLE_ROWS)
        else:
            state = self._dataset.state_dict()
        try:
            table = next(self._tables, None)
        except BaseException:
            self._tables = None
            self._cursor, self._length = Cursor(state, example, 0), 0
            raise
        self._cursor, self._length = Cursor(state, example, 0), 0 if table is None else table.num_rows
        return None if table is None else (self._cursor, table)

    def close(self) -> None:
        if self._tables is not None:
            cast(Any, self._tables).close()
        self._tables = None


class StreamedTables:
    """A share that is streamed for one reader."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._tables = TableStream(share.dataset, START)
        # Examples before this number have been read before.
        self._from = 0

    def seek(self, cursor: Cursor) -> None:
        self.close()
        self._from = cursor.example + cursor.row
        start = START if is_by_number(cursor) else Cursor(cursor.state, cursor.example)
        self._tables = TableStream(self._share.dataset, start)

    def next(self, wanted: int) -> Chunk | None:
        while (pulled := self._tables.pull()) is not None:
            cursor, table = pulled
            if cursor.example + table.num_rows > self._from:
                rows = rows_of(self._share, cursor.example, table.num_rows, self._from)
                return stored_chunk(self._share, cursor, table, rows)
        return None

    def close(self) -> None:
        self._tables.close()


def rows_of(share: Share, first: int, count: int, wanted: int) -> range:
    """Which of `count` examples from number `first` on belong to a share, those before number `wanted` left out."""
    step = share.step
    rows = range((share.phase - first) % step, count, step)
    return rows[max(0, -(-(wanted - first - rows.start) // step)) :] if rows else rows


def stored_chunk(share: Share, cursor: Cursor, table: pa.Table, rows: Sequence[int]) -> Chunk:
    """A table as a chunk with some of its rows."""
    if not rows:
        return Chunk(cursor, table.num_rows, [])
    some = table.select(top_columns(table, share.source.columns.values()))
    some = some if len(rows) == table.num_rows else some.take(list(rows))
    return Chunk(cursor, table.num_rows, list(zip(rows, stored_examples(share.source, some), strict=True)))


class IndexedTables:
    """The share's rows of indexed files, by their numbers: what lies between them is not parsed."""

    def __init__(self, share: Share, files: IndexedFiles) -> None:
        self._share, self._files = share, files
        # The file, the number of examples before it, and the next example.
        self._file = self._before = self._next = 0

    def seek(self, cursor: Cursor) -> None:
        state = cursor.state if is_by_number(cursor) and cursor.state is not None else {"file": 0, "before": 0}
        self._file, self._before = int(cast(int, state["file"])), int(cast(int, state["before"]))
        self._next = cursor.example + cursor.row

    def next(self, wanted: int) -> Chunk | None:
        at = self._file, self._before, self._next
        try:
            cursor, found = self._found(min(wanted, TABLE_ROWS))
            stored = self.stored([found], range(len(found.rows))) if found is not None else []
        except BaseException:
            self._file, self._before, self._next = at
            raise
        if found is None:
            return None
        first = cursor.example
        indices = (place - first for place in found.places)
        return Chunk(cursor, found.places[-1] + 1 - first, list(zip(indices, stored, strict=True)))

    def reserve(self, wanted: int) -> list[RowRange]:
        """The next `wanted` rows of the share, which are not read yet; fewer at the end."""
        ranges: list[RowRange] = []
        while wanted > 0 and (found := self._found(wanted)[1]) is not None:
            ranges.append(found)
            wanted -= len(found.rows)
        return ranges

    def place(self) -> Cursor:
        """The place of the next row."""
        return Cursor({"file": self._file, "before": self._before}, self._next) if self._next else START

    def stored(self, ranges: Sequence[RowRange], indices: Sequence[int]) -> list[Any]:
        """The stored examples with these indices in the ranges, in this order."""
        found: dict[int, Any] = {}
        first = 0
        for part in ranges:
            own = sorted(index for index in indices if first <= index < first + len(part.rows))
            if own:
                numbers = [part.rows[index - first] for index in own]
                found |= zip(own, self._examples(part.file, numbers), strict=True)
            first += len(part.rows)
        return [found[index] for index in indices]

    def _examples(self, file: int, numbers: list[int]) -> Sequence[Any]:
        """The stored rows of a file with these numbers, in ascending order."""
        return stored_examples(self._share.source, self._files.table(file, numbers))

    def _found(self, most: int) -> tuple[Cursor, RowRange | None]:
        """The place of the next row, and rows that lie in one file; None at the end of the share."""
        step = self._share.step
        while self._file < len(self._files.files):
            cursor, before = self.place(), self._before
            own = self._next - before + (self._share.phase - self._next) % step
            known = self._files.known(self._file, own + (most - 1) * step + 1)
            rows = range(own, known, step)[:most]
            if rows:
                self._next = before + rows[-1] + 1
                return cursor, RowRange(self._file, before, rows)
            # Fewer are known than were asked for, so these are all of the file.
            self._before += known
            self._next = max(self._next, self._before)
            self._file += 1
        return self.place(), None

    def close(self) -> None:
        self._files.close()


def is_by_number(cursor: Cursor) -> bool:
    """Whether the cursor is the number of a row, not a state of `datasets`."""
    return cursor.state is not None and "file" in cursor.state
