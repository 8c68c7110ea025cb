"""One stream's share of one source, read document by document from an exact cursor."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from shardyard.data.filters.outcome import Removed
from shardyard.data.index.records import IrregularError
from shardyard.data.index.rows import indexed_files
from shardyard.data.ledger.documents import content_hash
from shardyard.data.quirks import shard_files
from shardyard.data.sources.retry import Retry, Stopped, may_pass
from shardyard.data.sources.sources import Broken, Example
from shardyard.data.sources.web import WEB
from shardyard.data.stream.dealt import DealtTables
from shardyard.data.stream.left_out import LeftOut
from shardyard.data.stream.place import place_in_files
from shardyard.data.stream.share import START, Cursor, CursorState, Share, share_of, with_shards
from shardyard.data.stream.tables import TABLE_ROWS, Chunk, IndexedTables, RowRange, StreamedTables, Tables
from shardyard.data.tokenized.documents import TokenDataset, TokenTables
from shardyard.errors import DataError, ShardyardError, UnavailableError, UnusableRowError
from shardyard.recipe.schema import OnError

__all__ = ["START", "Cursor", "CursorState", "Reserved", "Share", "ShareReader", "share_of", "with_shards"]

Result = TypeVar("Result")

log = logging.getLogger(__name__)


@functools.cache
def _tell_irregular(name: str) -> None:
    """Once a process, however many streams share the source."""
    log.warning("%s has no index: its lines are not one row each, so it is read from its start", name)


@dataclass
class Reserved:
    """Consecutive rows of a share: `places` are their numbers in it, `cursor` is the place of the first.

    `ranges` and `tables` of rows that are read when they are asked for; `stored` of those that have been read.
    """

    cursor: Cursor
    places: Sequence[int]
    ranges: Sequence[RowRange] = ()
    tables: IndexedTables | None = None
    stored: list[Any] | None = None


class ShareReader:
    """Reads the examples of a share once from start to end; `seek` begins a new pass.

    Empty and incomplete examples are skipped and counted; `left_out` decides about those that cannot be read. After a
    transient failure, reading resumes at the same place. `places` are the numbers of the examples of the last `read` in
    the share.
    """

    def __init__(self, share: Share, retry: Retry, on_error: OnError = "skip", error_limit: float = 1.0) -> None:
        self.share = self._own = share
        self.num_skipped = 0
        self.left_out = LeftOut(on_error, error_limit)
        self.places: list[int] = []
        self._retry = retry
        # How the share is read where it has no index, and how it is read.
        self._streamed = _streamed_tables(share)
        self._tables = _tables_of(share, self._streamed)
        self._start = START
        # The last reserved rows of an index, unless reading went on elsewhere.
        self._newest: Reserved | None = None
        self._chunk: Chunk | None = None
        self._next = 0
        self._exhausted = False

    @property
    def name(self) -> str:
        return self.share.source.name

    def seek(self, cursor: Cursor) -> None:
        """Continue from `cursor`, which must come from a reader of the same share."""
        if cursor.whole != self._start.whole:
            self.close()
            self.share = share_of(self._own.source, 0, 1) if cursor.whole else self._own
            self._streamed = _streamed_tables(self.share)
            self._tables = _tables_of(self.share, self._streamed)
        self._tables.seek(cursor)
        self._start, self._chunk, self._next, self._exhausted = cursor, None, 0, False
        self._newest = None

    def cursor(self) -> Cursor:
        """The place after the last document read."""
        if self._chunk is None:
            return self._start
        rows = self._chunk.rows
        row = rows[self._next][0] if self._next < len(rows) else self._chunk.length
        return replace(self._chunk.cursor, row=row, whole=self._start.whole)

    def start(self) -> Cursor:
        """The place of the first document."""
        return replace(START, whole=self._start.whole)

    def read(self, count: int) -> list[Example]:
        """The next `count` examples, fewer only at the end of the share.

        Raises:
            DataError: the source cannot be read.
        """
        examples = list[Example]()
        self.places = []
        while len(examples) < count and (chunk := self._fetched(count - len(examples))) is not None:
            while self._next < len(chunk.rows) and len(examples) < count:
                index, stored = chunk.rows[self._next]
                self._next += 1
                place = chunk.cursor.example + index
                example = self._example(stored, place)
                if example is not None:
                    examples.append(example)
                    self.places.append(place)
        return examples

    def stored(self) -> Iterator[tuple[int, Any]]:
        """All rows that follow, usable or not, as they are stored, each with its number in the share.

        Raises:
            DataError: the source cannot be read.
        """
        while (chunk := self._fetched(TABLE_ROWS)) is not None:
            rows, self._next = chunk.rows[self._next :], len(chunk.rows)
            for index, value in rows:
                yield chunk.cursor.example + index, value

    def reserve(self, count: int) -> Reserved:
        """The next `count` rows, usable or not, fewer only at the end of the share. Indexed ones are not read yet.

        Raises:
            DataError: the source cannot be read.
        """
        if isinstance(self._tables, IndexedTables):
            tables, cursor = self._tables, self.cursor()
            try:
                ranges = self._told(lambda: tables.reserve(count))
            except IrregularError:
                self._stream_on()
            else:
                self._start, self._chunk = replace(tables.place(), whole=self._start.whole), None
                places = ranges[0].places if len(ranges) == 1 else [n for part in ranges for n in part.places]
                self._newest = Reserved(cursor, places, ranges, tables)
                return self._newest
        cursor, numbers, stored = self.cursor(), list[int](), list[Any]()
        while len(numbers) < count and (chunk := self._fetched(count - len(numbers))) is not None:
            some = chunk.rows[self._next : self._next + count - len(numbers)]
            self._next += len(some)
            numbers += [chunk.cursor.example + index for index, _ in some]
            stored += [value for _, value in some]
        return Reserved(cursor, numbers, stored=stored)

    def take(self, reserved: Reserved, indices: Sequence[int]) -> list[Example | None]:
        """Some of the reserved rows in this order; None for one that is skipped, held out or cannot be used.

        Raises:
            DataError: the source cannot be read.
        """
        tables = reserved.tables
        if reserved.stored is None and tables is not None:
            try:
                some = self._told(lambda: tables.stored(reserved.ranges, indices))
                pairs = list(zip(indices, some, strict=True))
                return [self._example(stored, reserved.places[index]) for index, stored in pairs]
            except IrregularError:
                # This reader goes on without the index if it stands at the end of these rows.
                again = self if reserved is self._newest else ShareReader(self.share, self._retry)
                again._stream_on(reserved.cursor)
                reserved.stored = again.reserve(len(reserved.places)).stored
                if again is not self:
                    again.close()
        assert reserved.stored is not None, "rows that are not indexed are read when they are reserved"
        return [self._example(reserved.stored[index], reserved.places[index]) for index in indices]

    def _example(self, stored: Any, place: int) -> Example | None:
        """The example of a row; None if it is skipped, held out, or cannot be used, which is counted."""
        source = self.share.source
        self.left_out.num_read += 1
        if isinstance(stored, Broken):
            stored = self._mended(stored, place)
            if stored is None:
                return None
        try:
            example = source.decoded(stored)
            missing = source.missing(example)
            if missing is not None and source.is_text:
                self.num_skipped += 1
            elif missing is not None:
                raise UnusableRowError(f"no {missing}")
            elif source.keeps(stored):
                return self._filtered(source.laid_out(example))
        except UnusableRowError as error:
            if source.keeps(stored):
                self.left_out.unusable(self.place(place), error)
        return None

    def _filtered(self, example: Example) -> Example | None:
        """The example after data.exclude and data.filters; None if they remove it, which is counted."""
        excluded = self.share.source.excluded
        if excluded and content_hash(example) in excluded:
            self.left_out.filtered("exclude: listed")
            return None
        steps = self.share.source.steps
        outcome = example if steps is None else steps.of_example(example)
        if isinstance(outcome, Removed):
            self.left_out.filtered(outcome.reason)
            return None
        return outcome

    def _mended(self, broken: Broken, place: int) -> Example | None:
        """The repaired example if there is one and `data.on_error` asks for it."""
        if broken.repaired is None or self.left_out.on_error != "repair":
            self.left_out.unusable(self.place(place), UnusableRowError(broken.problem))
            return None
        self.left_out.repaired(self.place(place))
        return broken.repaired

    def place(self, number: int) -> str:
        """Where an example of the share lies: `train.jsonl, row 61`, or how many rows of this stream precede it."""
        if isinstance(self.share.dataset, TokenDataset):
            return self.share.dataset.place(number)
        return place_in_files(self.name, shard_files(self.share.dataset), number)

    def close(self) -> None:
        """Close open files; further reads need `seek`."""
        self._tables.close()
        self._streamed.close()

    def _fetched(self, wanted: int) -> Chunk | None:
        """The chunk that holds the next row of this share; None at the end."""
        while self._chunk is None or self._next >= len(self._chunk.rows):
            if self._exhausted:
                return None
            following = self._pull(wanted)
            self._exhausted = following is None
            if following is not None:
                self._chunk, self._next = following, 0
        return self._chunk

    def _pull(self, wanted: int) -> Chunk | None:
        try:
            return self._told(lambda: self._tables.next(wanted))
        except IrregularError:
            self._stream_on()
            return self._told(lambda: self._tables.next(wanted))

    def _stream_on(self, cursor: Cursor | None = None) -> None:
        """Read the share from its start on, without an index, up to a place (this one) and then further."""
        _tell_irregular(self.name)
        at = cursor or self.cursor()
        self._tables = self._streamed
        self._tables.seek(at)
        self._start, self._chunk, self._next, self._exhausted = at, None, 0, False
        self._newest = None

    def _told(self, read: Callable[[], Result]) -> Result:
        """The result of a read, which is retried; errors are told in words."""
        mark = WEB.mark()
        try:
            return self._retry.call(read, f"source {self.name}")
        except (ShardyardError, Stopped, IrregularError):
            raise
        except Exception as error:
            cause = WEB.error_since(mark)
            if isinstance(cause, UnavailableError):
                raise cause from error
            kind = UnavailableError if may_pass(error) else DataError
            raise kind(self._explain(error)) from error

    def _explain(self, error: Exception) -> str:
        first = (str(error).strip().splitlines() or [""])[0]
        advice = (
            f"it still failed after {self._retry.limit_seconds:g} s (data.retry_seconds); check the network or the "
            "storage, then resume."
            if may_pass(error)
            else "check the file, and that all files of the source have the same columns."
        )
        return f"source {self.name}: reading failed with {type(error).__name__}: {first}; {advice}"


def _streamed_tables(share: Share) -> Tables:
    return StreamedTables(share) if share.step == 1 else DealtTables(share)


def _tables_of(share: Share, streamed: Tables) -> Tables:
    if isinstance(share.dataset, TokenDataset):
        return TokenTables(share)
    files = indexed_files(share.dataset)
    return streamed if files is None else IndexedTables(share, files)
