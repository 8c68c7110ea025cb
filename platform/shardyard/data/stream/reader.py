"""One stream's share of one source, read document by document from an exact cursor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict, cast

import pyarrow as pa

from shardyard.data.quirks import shard_files
from shardyard.data.sources.retry import PERMANENT, TRANSIENT, Retry, Stopped
from shardyard.data.sources.sources import Example, OpenSource, in_words, top_columns, values_of
from shardyard.data.sources.web import WEB
from shardyard.data.stream.left_out import LeftOut
from shardyard.data.stream.place import place_in_files
from shardyard.errors import DataError, ShardyardError, UnavailableError, UnusableRowError
from shardyard.recipe.schema import OnError

# Examples fetched at once. It affects speed and memory, never the order.
TABLE_ROWS = 256


class CursorState(TypedDict):
    """A cursor in the data state of a checkpoint."""

    state: Mapping[str, object] | None
    example: int
    row: int
    whole: bool


@dataclass(frozen=True)
class Cursor:
    """The place at which reading a share continues.

    `state` is the `state_dict` of `datasets` before a table (None: the start), `example` the number of examples of
    the shard before this table, `row` the number of rows of the table already read. `whole` is the place in the whole
    source, not in the share.
    """

    state: Mapping[str, object] | None = None
    example: int = 0
    row: int = 0
    whole: bool = False


START = Cursor()


@dataclass(frozen=True)
class Share:
    """One stream's part of a source: the examples of `dataset` with index ≡ `phase` (mod `step`)."""

    source: OpenSource
    stream: int
    streams: int
    dataset: Any
    step: int
    phase: int


def with_shards(source: OpenSource, streams: int, retry: Retry | None = None) -> OpenSource:
    """The source; if it has fewer Parquet files than streams, they are split into row groups."""
    if source.dataset.num_shards >= streams:
        return source
    return replace(source, dataset=in_words(source.name, retry or Retry(), source.dataset.reshard))


def share_of(source: OpenSource, stream: int, streams: int) -> Share:
    """The share of stream `stream` of `streams`: whole shards if the source has at least as many shards as streams.

    With S shards for L > S streams, the k streams l ≡ s (mod S) share shard s, and each takes every k-th example of it.
    The cost: each of the k streams reads and decodes the whole shard, so a single file is read L times per epoch. To
    avoid this, provide at least as many files (or Parquet row groups) as streams.
    """
    shards = source.dataset.num_shards
    if shards >= streams:
        return Share(source, stream, streams, source.dataset.shard(streams, stream, contiguous=False), 1, 0)
    part = source.dataset.shard(shards, stream % shards, contiguous=False)
    return Share(source, stream, streams, part, len(range(stream % shards, streams, shards)), stream // shards)


class ShareReader:
    """Reads the examples of a share once from start to end; `seek` begins a new pass.

    Empty and incomplete examples are skipped and counted; `left_out` decides about those that cannot be read. After a
    transient failure, reading resumes at the same place. `places` are the numbers of the examples of the last `read` in
    the share.
    """

    def __init__(self, share: Share, retry: Retry, on_error: OnError = "skip") -> None:
        self.share = self._own = share
        self.num_skipped = 0
        self.left_out = LeftOut(on_error)
        self.places: list[int] = []
        self._retry = retry
        self._tables: Iterator[pa.Table] | None = None
        self._dataset: Any = None
        self._cursor = START
        self._rows: list[tuple[int, Any]] = []
        self._next = 0
        self._length = 0
        self._exhausted = False

    @property
    def name(self) -> str:
        return self.share.source.name

    def seek(self, cursor: Cursor) -> None:
        """Continue from `cursor`, which must come from a reader of the same share."""
        self.close()
        if cursor.whole != self._cursor.whole:
            self.share = share_of(self._own.source, 0, 1) if cursor.whole else self._own
        self._cursor = replace(cursor, row=0)
        self._rows, self._next, self._length, self._exhausted = [], 0, 0, False
        if cursor.row:
            self._advance()
            self._next = next((i for i, (row, _) in enumerate(self._rows) if row >= cursor.row), len(self._rows))

    def cursor(self) -> Cursor:
        """The place after the last document read."""
        row = self._rows[self._next][0] if self._next < len(self._rows) else self._length
        return replace(self._cursor, row=row)

    def start(self) -> Cursor:
        """The place of the first document."""
        return replace(START, whole=self._cursor.whole)

    def read(self, count: int) -> list[Example]:
        """The next `count` examples, fewer only at the end of the share.

        Raises:
            DataError: the source cannot be read.
        """
        source, examples = self.share.source, list[Example]()
        self.places = []
        while len(examples) < count:
            if self._next >= len(self._rows) and not self._fetch():
                break
            while self._next < len(self._rows) and len(examples) < count:
                index, stored = self._rows[self._next]
                self._next += 1
                place = self._cursor.example + index
                try:
                    example = source.decoded(stored)
                    if not source.is_usable(example):
                        self.num_skipped += 1
                    elif source.keeps(stored):
                        examples.append(source.laid_out(example))
                        self.places.append(place)
                except UnusableRowError as error:
                    if source.keeps(stored):
                        self.left_out.unusable(self.place(place), error)
        return examples

    def place(self, number: int) -> str:
        """Where an example of the share lies: `train.jsonl, row 61`, or how many rows of this stream precede it."""
        return place_in_files(self.name, shard_files(self.share.dataset), number)

    def close(self) -> None:
        """Close open files; further reads need `seek`."""
        if self._tables is not None:
            cast(Any, self._tables).close()
        self._tables = None

    def _fetch(self) -> bool:
        """Move to the next table with rows of this share; False at the end."""
        self._rows = []
        while not self._rows and not self._exhausted:
            self._advance()
        return bool(self._rows)

    def _advance(self) -> None:
        mark = WEB.mark()
        try:
            table = self._retry.call(self._pull, f"source {self.name}")
        except (ShardyardError, Stopped):
            raise
        except Exception as error:
            cause = WEB.error_since(mark)
            if isinstance(cause, UnavailableError):
                raise cause from error
            kind = UnavailableError if _may_pass(error) else DataError
            raise kind(self._explain(error)) from error
        step, phase, first = self.share.step, self.share.phase, self._cursor.example
        self._exhausted, self._next = table is None, 0
        self._length = 0 if table is None else table.num_rows
        rows = range((phase - first) % step, self._length, step)
        if table is not None and rows:
            table = table.select(top_columns(table, self.share.source.columns.values()))
            self._rows = list(zip(rows, self._examples(table.take(list(rows)) if step > 1 else table), strict=True))

    def _examples(self, table: pa.Table) -> list[Any]:
        source = self.share.source
        if source.is_text:
            return values_of(table, source.columns["text"])
        columns = {role: values_of(table, column) for role, column in source.columns.items()}
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]

    def _pull(self) -> pa.Table | None:
        """The next table; a failure leaves the cursor unchanged, so that a retry repeats nothing."""
        state, example = self._cursor.state, self._cursor.example + self._length
        if self._tables is None:
            self._dataset = self.share.dataset.with_format("arrow")
            if state is not None:
                self._dataset.load_state_dict(state)
            self._tables = self._dataset.iter(batch_size=TABLE_ROWS)
        else:
            state = self._dataset.state_dict()
        try:
            table = next(self._tables, None)
        except BaseException:
            self._tables = None
            self._cursor, self._length = replace(self._cursor, state=state, example=example, row=0), 0
            raise
        self._cursor = replace(self._cursor, state=state, example=example, row=0)
        return table

    def _explain(self, error: Exception) -> str:
        first = (str(error).strip().splitlines() or [""])[0]
        advice = (
            f"it still failed after {self._retry.limit_seconds:g} s (data.retry_seconds); check the network or the "
            "storage, then resume."
            if _may_pass(error)
            else "check the file, and that all files of the source have the same columns."
        )
        return f"source {self.name}: reading failed with {type(error).__name__}: {first}; {advice}"


def _may_pass(error: Exception) -> bool:
    return isinstance(error, TRANSIENT) and not isinstance(error, PERMANENT)
