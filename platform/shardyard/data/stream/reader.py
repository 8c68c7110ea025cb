"""One stream's share of one source, read document by document from an exact cursor."""

from __future__ import annotations

from dataclasses import replace

from shardyard.data.index.records import IrregularError
from shardyard.data.index.rows import indexed_files
from shardyard.data.quirks import shard_files
from shardyard.data.sources.retry import PERMANENT, TRANSIENT, Retry, Stopped
from shardyard.data.sources.sources import Broken, Example
from shardyard.data.sources.web import WEB
from shardyard.data.stream.left_out import LeftOut
from shardyard.data.stream.place import place_in_files
from shardyard.data.stream.share import START, Cursor, CursorState, Share, share_of, with_shards
from shardyard.data.stream.tables import Chunk, IndexedTables, StreamedTables, Tables
from shardyard.errors import DataError, ShardyardError, UnavailableError, UnusableRowError
from shardyard.recipe.schema import OnError

__all__ = ["START", "Cursor", "CursorState", "Share", "ShareReader", "share_of", "with_shards"]


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
        self._tables = _tables_of(share)
        self._start = START
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
            self._tables = _tables_of(self.share)
        self._tables.seek(cursor)
        self._start, self._chunk, self._next, self._exhausted = cursor, None, 0, False

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
                if isinstance(stored, Broken):
                    stored = self._mended(stored, place)
                    if stored is None:
                        continue
                self._take(stored, place, examples)
        return examples

    def _take(self, stored: Example, place: int, examples: list[Example]) -> None:
        """Add an example, or count it."""
        source = self.share.source
        try:
            example = source.decoded(stored)
            missing = source.missing(example)
            if missing is not None and source.is_text:
                self.num_skipped += 1
            elif missing is not None:
                raise UnusableRowError(f"no {missing}")
            elif source.keeps(stored):
                examples.append(source.laid_out(example))
                self.places.append(place)
        except UnusableRowError as error:
            if source.keeps(stored):
                self.left_out.unusable(self.place(place), error)

    def _mended(self, broken: Broken, place: int) -> Example | None:
        """The repaired example if there is one and `data.on_error` asks for it."""
        if broken.repaired is None or self.left_out.on_error != "repair":
            self.left_out.unusable(self.place(place), UnusableRowError(broken.problem))
            return None
        self.left_out.repaired(self.place(place))
        return broken.repaired

    def place(self, number: int) -> str:
        """Where an example of the share lies: `train.jsonl, row 61`, or how many rows of this stream precede it."""
        return place_in_files(self.name, shard_files(self.share.dataset), number)

    def close(self) -> None:
        """Close open files; further reads need `seek`."""
        self._tables.close()

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
        mark = WEB.mark()
        try:
            return self._retry.call(lambda: self._next_chunk(wanted), f"source {self.name}")
        except (ShardyardError, Stopped):
            raise
        except Exception as error:
            cause = WEB.error_since(mark)
            if isinstance(cause, UnavailableError):
                raise cause from error
            kind = UnavailableError if _may_pass(error) else DataError
            raise kind(self._explain(error)) from error

    def _next_chunk(self, wanted: int) -> Chunk | None:
        try:
            return self._tables.next(wanted)
        except IrregularError:
            at = self.cursor()
            self._tables = StreamedTables(self.share)
            self._tables.seek(at)
            return self._tables.next(wanted)

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


def _tables_of(share: Share) -> Tables:
    files = indexed_files(share.dataset)
    return StreamedTables(share) if files is None else IndexedTables(share, files)
