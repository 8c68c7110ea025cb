"""Where documents lie: from numbers in the shares of streams to files and rows, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from shardyard.data.filters.outcome import Removed
from shardyard.data.index.records import IrregularError
from shardyard.data.index.rows import IndexedFiles, indexed_files
from shardyard.data.ledger.documents import content_hash
from shardyard.data.quirks import ShardFile, shard_files
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import Broken, Example, OpenSource, stored_examples
from shardyard.data.stream.place import file_rows
from shardyard.data.stream.reader import ShareReader
from shardyard.data.stream.share import Share, share_of
from shardyard.errors import UnusableRowError

ALL = 1 << 62


@dataclass(frozen=True)
class Place:
    """A document in a source: row `row` of `file`, from 1. `file` is the name of the source where its files are not
    known; rows are then counted in its part `shard`."""

    source: int
    shard: int
    file: str
    row: int


@dataclass(frozen=True)
class ReadDocument:
    """A document as the objective reads it, before data.filters, its values as they are in the columns that are read
    (`columns`), and as it is stored."""

    example: Example
    columns: Example
    stored: Any


@dataclass(frozen=True)
class Number:
    """A document as a stream knows it: its number in the share of `stream`, or in the whole source."""

    source: int
    stream: int
    number: int
    whole: bool = False


@dataclass(frozen=True)
class _Part:
    """Rows of one file of a shard: `before` of them precede this part in the file, `first` in the shard."""

    file: str
    before: int
    first: int
    count: int | None


class Places:
    """The places of one source's documents. Counts rows only where a file has others before it.

    Args:
        streams: of the run; the source must have been opened for them (`with_shards`).
    """

    def __init__(self, index: int, source: OpenSource, streams: int) -> None:
        self.index, self.source, self._streams = index, source, streams
        self._shards: int = source.dataset.num_shards
        self._parts: dict[int, list[_Part]] = {}

    def of(self, number: Number) -> Place:
        """The place of a document of a stream. Nothing is read to count rows: where that would be needed, the place is
        that in the stream's part of the source."""
        rest = number.number
        shards = self._shards_of(number)
        for shard in shards[:-1]:
            last = self._parts_of(shard)[-1]
            if last.count is None:
                return Place(self.index, number.stream, self.source.name, number.number + 1)
            if rest < last.first + last.count:
                return self._in_shard(shard, rest)
            rest -= last.first + last.count
        return self._in_shard(shards[-1], rest)

    def shard_of(self, number: Number) -> tuple[int, int]:
        """The shard of a document of a stream, and its number there."""
        rest, (*others, last) = number.number, self._shards_of(number)
        for shard in others:
            if rest < self.size(shard):
                return shard, rest
            rest -= self.size(shard)
        return last, rest

    def numbers(self, shard: int, number: int, reading_whole: Iterable[int] = ()) -> list[Number]:
        """A document of a shard as its stream knows it, and as those do that read the whole source."""
        if self._shards >= self._streams:
            stream = shard % self._streams
            found = [Number(self.index, stream, number + self._size_of(range(stream, shard, self._streams)))]
        else:
            step = len(range(shard, self._streams, self._shards))
            found = [Number(self.index, shard + self._shards * (number % step), number)]
        return found + [
            Number(self.index, stream, number + self._size_of(range(shard)), whole=True) for stream in reading_whole
        ]

    def read(self, shard: int, number: int) -> ReadDocument | None:
        """A document of a shard; None if it cannot be used."""
        indexed = indexed_files(self._share(shard).dataset)
        if indexed is not None and len(indexed.files) == 1:
            try:
                if number < indexed.known(0, number + 1):
                    return self._read(stored_examples(self.source, indexed.table(0, [number]))[0])
            except IrregularError:
                pass
            finally:
                indexed.close()
        return next((self._read(stored) for at, stored in self._rows(shard) if at == number), None)

    def find(self, file: str, row: int) -> list[tuple[Place, int]]:
        """The documents at row `row` of files with this path or name, each with its number in its shard."""
        found = []
        for shard in range(self._shards):
            for part in self._parts_of(shard):
                inside = row - 1 - part.before
                matches = part.file == file or Path(part.file) == Path(file).expanduser().absolute()
                if not matches and Path(part.file).name != file:
                    continue
                count = part.count if part.count is not None else self.size(shard) - part.first
                if 0 <= inside < count:
                    found.append((Place(self.index, shard, part.file, row), part.first + inside))
        return found

    def scan(self) -> Iterator[tuple[Place, int, ReadDocument]]:
        """All documents of the source that can be used, read once, with their places and numbers in their shards."""
        for shard in range(self._shards):
            for number, stored in self._rows(shard):
                if (read := self._read(stored)) is not None:
                    yield self._in_shard(shard, number), number, read

    def is_kept_out(self, read: ReadDocument) -> bool:
        """Whether a document is on the other side of the hold-out, excluded, or removed by data.filters."""
        if self.source.excluded and content_hash(read.example) in self.source.excluded:
            return True
        steps = self.source.steps
        if steps is not None and isinstance(steps.of_example(read.example), Removed):
            return True
        return not self.source.keeps(read.stored)

    def _read(self, stored: Any) -> ReadDocument | None:
        if isinstance(stored, Broken):
            if stored.repaired is None:
                return None
            stored = stored.repaired
        try:
            columns = self.source.decoded(stored)
            if self.source.missing(columns) is not None:
                return None
            return ReadDocument(self.source.laid_out(columns), columns, stored)
        except UnusableRowError:
            return None

    def size(self, shard: int) -> int:
        """The number of rows of a shard."""
        last = self._parts_of(shard)[-1]
        if last.count is None:
            count = sum(1 for _ in self._rows(shard))
            self._parts[shard][-1] = _Part(last.file, last.before, last.first, count - last.first)
            return count
        return last.first + last.count

    def _size_of(self, shards: Iterable[int]) -> int:
        return sum(self.size(shard) for shard in shards)

    def _shards_of(self, number: Number) -> list[int]:
        """The shards that a stream reads, in this order."""
        if number.whole:
            return list(range(self._shards))
        if self._shards >= self._streams:
            return list(range(number.stream, self._shards, self._streams))
        return [number.stream % self._shards]

    def _in_shard(self, shard: int, number: int) -> Place:
        for part in self._parts_of(shard):
            if part.count is None or number < part.first + part.count:
                return Place(self.index, shard, part.file, part.before + number - part.first + 1)
        return Place(self.index, shard, self.source.name, number + 1)

    def _parts_of(self, shard: int) -> list[_Part]:
        if shard not in self._parts:
            dataset = self._share(shard).dataset
            indexed, parts, first = indexed_files(dataset), list[_Part](), 0
            files = shard_files(dataset) or [ShardFile(self.source.name)]
            for place, file in enumerate(files):
                # Rows of the last file need no count before a document behind it is looked for.
                before, count = _counted(file, indexed, place)
                parts.append(_Part(file.path, before, first, count))
                if count is None:
                    break
                first += count
            if indexed is not None:
                indexed.close()
            self._parts[shard] = parts
        return self._parts[shard]

    def _share(self, shard: int) -> Share:
        return share_of(self.source, shard, self._shards)

    def _rows(self, shard: int) -> Iterator[tuple[int, Any]]:
        reader = ShareReader(self._share(shard), Retry())
        reader.seek(reader.start())
        try:
            yield from reader.stored()
        finally:
            reader.close()


def _counted(file: ShardFile, indexed: IndexedFiles | None, place: int) -> tuple[int, int | None]:
    """Rows of the file before this part, and rows of the part; None if they are not counted without reading them."""
    try:
        if file.path.endswith(".parquet"):
            return file_rows(file)
        if indexed is not None:
            return 0, indexed.known(place, ALL)
    except (OSError, pa.ArrowException, IrregularError):
        pass
    return 0, None
