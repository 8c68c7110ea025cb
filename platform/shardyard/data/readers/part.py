"""A reader's part of a global batch: the rows of its streams, with the states of these streams after them.

Legend: R = rows of a rank in one global batch, S = streams of a rank, W = readers of a rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict

from shardyard.data.stream.cuts import NO_CUTS, Cuts
from shardyard.data.stream.left_out import LeftOutCounts, added
from shardyard.data.stream.rows import Row
from shardyard.data.stream.streams import Stream, StreamState


class SourceCounts(TypedDict):
    """Counts of one source; see `TrainLoader.stats`."""

    rows: int
    tokens: int
    documents: int
    skipped: int
    epochs: int
    left_out: LeftOutCounts


@dataclass(frozen=True)
class Part:
    """Some rows of a batch in their order, each with the index of its source, [≤ R]; None where a stream has ended.

    `states` and `counts` are those of the streams that the rows are from, after the last row; `num_cut` tokens did not
    fit since the reader began, `cuts` is what these rows lost, `num_retries` were made by a reader in its own process.
    """

    rows: Sequence[tuple[Row, int] | None]
    states: Mapping[int, StreamState]
    counts: Mapping[int, Sequence[SourceCounts]]
    num_tokens: int
    num_cut: int = 0
    cuts: Cuts = NO_CUTS
    num_retries: int = 0


class Formats(Protocol):
    """The row formats of a reader: they count tokens that did not fit, and may have rows for streams that end."""

    @property
    def num_cut(self) -> int: ...

    def filler_at(self, number: int) -> Row | None:
        """A row without targets in place of row `number` of the rank; None if the format has none."""


class OwnStreams:
    """The streams of a rank that one reader reads: every W-th, from `reader` on.

    Row n of the rank comes from its stream n mod S, counted in ascending order.
    """

    def __init__(self, streams: Mapping[int, Stream], formats: Formats, *, reader: int = 0, readers: int = 1) -> None:
        self._order = list(streams)
        self._streams = {index: streams[index] for index in self._order[reader::readers]}
        self._formats = formats
        # The row that is being made, by which the first of several failures is known.
        self.at = 0

    def part(self, first: int, count: int) -> Part:
        """This reader's part of the rows from `first` on.

        Raises:
            DataError: a row cannot be made; it is row `at`.
        """
        rows: list[tuple[Row, int] | None] = []
        drawn: dict[int, tuple[int, Cuts]] = {}
        for number in range(first, first + count):
            index = self._order[number % len(self._order)]
            stream = self._streams.get(index)
            if stream is None:
                continue
            self.at = number
            if index not in drawn:
                drawn[index] = stream.num_tokens, stream.cuts
            row = stream.next_row()
            if row is None:
                stream.pass_over()
                filler = self._formats.filler_at(number)
                row = None if filler is None else (filler, -1)
            rows.append(row)
        return Part(
            rows,
            {index: self._streams[index].state() for index in drawn},
            {index: counts_of(self._streams[index]) for index in drawn},
            sum(self._streams[index].num_tokens - before for index, (before, _) in drawn.items()),
            self._formats.num_cut,
            sum((self._streams[index].cuts - before for index, (_, before) in drawn.items()), NO_CUTS),
        )

    def close(self) -> None:
        for stream in self._streams.values():
            stream.close()


def counts_of(stream: Stream) -> list[SourceCounts]:
    """Per source, since the stream began to be read here."""
    return [
        {
            "rows": rows.num_rows,
            "tokens": rows.num_tokens,
            "documents": rows.num_documents,
            "skipped": rows.windows.reader.num_skipped,
            "left_out": rows.windows.reader.left_out.counts(),
            "epochs": rows.position.epoch,
        }
        for rows in stream.by_source
    ]


def in_order(parts: Sequence[Part], first: int, count: int, num_streams: int) -> Iterator[tuple[Row, int] | None]:
    """The rows of all readers' parts in the order of the batch."""
    rows = [iter(part.rows) for part in parts]
    for number in range(first, first + count):
        yield next(rows[number % num_streams % len(rows)])


def added_counts(by_stream: Sequence[Sequence[SourceCounts]]) -> list[SourceCounts]:
    """Per source, summed over streams; epochs are those of the furthest one."""
    return [
        {
            "rows": sum(one["rows"] for one in counts),
            "tokens": sum(one["tokens"] for one in counts),
            "documents": sum(one["documents"] for one in counts),
            "skipped": sum(one["skipped"] for one in counts),
            "left_out": added([one["left_out"] for one in counts]),
            "epochs": max(one["epochs"] for one in counts),
        }
        for counts in zip(*by_stream, strict=True)
    ]
