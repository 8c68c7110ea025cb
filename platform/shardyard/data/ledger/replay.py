"""Rows of a run, made again from the states of its streams."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from shardyard.data.formats import FormatInputs
from shardyard.data.ledger.places import Number, Places
from shardyard.data.mixture.batches import StageBatches, batch_plan, mixture_of
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource
from shardyard.data.stream.length_groups import rows_per_batch_of
from shardyard.data.stream.reader import with_shards
from shardyard.data.stream.rows import Part, Position, Row, RowStream
from shardyard.data.stream.streams import Stream, StreamSettings, StreamState
from shardyard.data.tokenized.opening import open_documents
from shardyard.recipe.mixture.weights import weights_of


@dataclass(frozen=True)
class MadeRow:
    """A row that was made again. `position`: its number in its stream. `before`: where its source stood.

    `parts`: the documents that it was made of.
    """

    stream: int
    position: int
    row: Row
    source: int
    before: Position
    parts: tuple[Part, ...]
    rows: RowStream

    def number(self, part: Part) -> Number:
        """A document of the row as its stream knows it."""
        return Number(self.source, self.stream, part.share_number, part.window.cursor.whole)


class Replay:
    """Makes rows of a run again, from any state of a stream on.

    Raises:
        DataError: a source cannot be opened or (methods) read.
    """

    def __init__(
        self,
        inputs: FormatInputs,
        objective: str,
        *,
        streams: int,
        seed: int,
        global_batch: int,
        stages: Sequence[StageBatches] = (),
    ) -> None:
        data = inputs.data
        self.num_streams = streams
        # Batches are the same; the texts of documents are asked for here.
        texts = replace(inputs, data=data.model_copy(update={"tokenized": "never"}))
        self.sources: list[OpenSource] = [
            with_shards(open_documents(texts, objective, source, training=True), streams) for source in data.train
        ]
        self.places = [Places(index, source, streams) for index, source in enumerate(self.sources)]
        self._weights = weights_of(data)
        one = StageBatches(0, global_batch, global_batch, data.sequence_length, tuple(self._weights))
        plan = batch_plan(stages or (one,), inputs, objective, 1)
        settings = StreamSettings(
            plan.formats[0].stream,
            data.shuffle_window,
            streams,
            seed,
            # The training was not stopped by these rows.
            on_error="skip" if data.on_error == "stop" else data.on_error,
            order=data.order,
            group=rows_per_batch_of(data, global_batch, streams),
            mixture=mixture_of(data, objective, stages),
        )
        self._settings = plan.streams_of(settings)

    def open(self, stream: int, state: StreamState | None) -> Stream:
        """A stream at a state, or at its start; the caller closes it."""
        opened = Stream(stream, self.sources, self._weights, self._settings, Retry())
        if state is not None:
            opened.load_state(state)
        return opened

    def rows(self, stream: int, state: StreamState | None, first: int, last: int) -> Iterator[MadeRow]:
        """Rows `first` to before `last` of a stream, made from a state at or before them."""
        opened = self.open(stream, state)
        try:
            while opened.num_rows < last:
                position, before = opened.num_rows, [rows.position for rows in opened.by_source]
                made = opened.next_row()
                if made is None:  # Its sources are exhausted; other streams still had rows.
                    return
                if position >= first:
                    row, source = made
                    rows = opened.by_source[source]
                    yield MadeRow(stream, position, row, source, before[source], tuple(rows.parts()), rows)
        finally:
            opened.close()


@dataclass(frozen=True)
class Seen:
    """A row in which a document was trained on; `row` is its number in the run, from 0."""

    row: int
    epoch: int
    tokens: int | None


@dataclass(frozen=True)
class Known:
    """A state of a stream that is known: `rows` were made before it; None is the start of the stream."""

    rows: int
    state: StreamState | None


class Finder:
    """Finds the rows that documents were in, by making again only the parts of the streams in which they can be.

    Args:
        known: stream → known states, in the order of their rows; the first one is where the search begins.
        rows: the number of rows of each stream at which the search ends.
    """

    def __init__(self, replay: Replay, known: dict[int, list[Known]], rows: dict[int, int]) -> None:
        self._replay, self._known, self._rows = replay, known, rows
        self._whole: dict[tuple[int, int], bool] = {}

    def find(self, numbers: set[Number]) -> dict[Number, list[Seen]]:
        """The rows of each of the documents, in their order."""
        found: dict[Number, list[Seen]] = {number: [] for number in numbers}
        for stream in sorted({number.stream for number in numbers}):
            own = {number for number in numbers if number.stream == stream}
            for first, last in self._intervals(stream, own):
                self._search(stream, first, last, found)
        return found

    def _search(self, stream: int, first: int, last: int, found: dict[Number, list[Seen]]) -> None:
        known = self._known[stream]
        ends = known[last + 1].rows if last + 1 < len(known) else self._rows[stream]
        for made in self._replay.rows(stream, known[first].state, known[first].rows, ends):
            for part in made.parts:
                if (number := made.number(part)) in found:
                    row = made.position * self._replay.num_streams + stream
                    found[number].append(Seen(row, part.window.epoch, part.tokens))

    def _intervals(self, stream: int, numbers: set[Number]) -> list[tuple[int, int]]:
        """Runs of intervals between known states, first and last, in which documents can have been drawn."""
        known, wanted = self._known[stream], set[int]()
        for number in numbers:
            windows = [_window(one.state, number.source) for one in known]
            for epoch in range(windows[0][0], windows[-1][0] + 2):
                wanted.update(_possible(windows, (epoch, number.number)))
        runs: list[tuple[int, int]] = []
        for index in sorted(wanted):
            if runs and runs[-1][1] == index - 1:
                runs[-1] = (runs[-1][0], index)
            else:
                runs.append((index, index))
        return runs

    def reads_whole(self, stream: int, source: int) -> bool:
        """Whether a stream reads the whole source, because its share has nothing to learn from. It does so from its
        first row of the source on."""
        if (stream, source) not in self._whole:
            states = [one.state for one in self._known[stream] if one.state is not None]
            is_whole = any(state["sources"][source]["cursor"]["whole"] for state in states)
            if not states and self._rows[stream]:
                opened = self._replay.open(stream, None)
                try:
                    rows = opened.by_source[source]
                    is_whole = rows.next_row() is not None and rows.position.cursor.whole
                finally:
                    opened.close()
            self._whole[stream, source] = is_whole
        return self._whole[stream, source]


def _window(state: StreamState | None, source: int) -> tuple[int, int]:
    """The window of a source at a state: its epoch, and the number of its first document."""
    if state is None:
        return 0, 0
    position = Position.from_json(state["sources"][source])
    return position.epoch, position.cursor.example + position.cursor.row


def _possible(windows: Sequence[tuple[int, int]], document: tuple[int, int]) -> range:
    """The intervals, each from the state of this index to the next, in which a document (epoch, number) can be drawn.

    The last state whose window begins at or before the document is of its window or of one before it, so the document
    is drawn in that interval or, if states before it are of the same window, from the one in which this was begun on.
    """
    last = bisect_right(windows, document) - 1
    if last < 0:
        return range(0)
    first = last
    while first > 0 and windows[first - 1] == windows[last]:
        first -= 1
    return range(max(0, first - 1), last + 1)
