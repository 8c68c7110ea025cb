"""The training loader: this rank's rows of every global batch, prepared by one background thread.

Ranks are data-parallel ranks: those that read different rows. All other ranks read the same rows as one of them.
Legend: R = rows of this rank in one global batch, B = rows of a micro-batch, L = streams, N = data-parallel ranks.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.sources.retry import Retry, Stopped
from shardyard.data.sources.sources import open_for
from shardyard.data.sources.web import WEB
from shardyard.data.stream.held_out import HeldOut, held_out_rows, validation_sources
from shardyard.data.stream.left_out import LeftOutCounts, added
from shardyard.data.stream.reader import with_shards
from shardyard.data.stream.rows import Rows, Tensors
from shardyard.data.stream.streams import Stream, StreamSettings, StreamStates
from shardyard.data.tokenizers import tokenizer as tokenizers
from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec

__all__ = ["Batch", "HeldOut", "TrainLoader", "held_out_rows", "validation_sources"]

POLL_SECONDS = 0.1


class SourceCounts(TypedDict):
    """Counts of one source; see `TrainLoader.stats`."""

    rows: int
    tokens: int
    documents: int
    skipped: int
    epochs: int
    left_out: LeftOutCounts


class NamedCounts(SourceCounts):
    """Counts of one source, with its name."""

    name: str


class Counts(TypedDict):
    """Counts up to a batch, of this rank's streams."""

    retries: int
    cut: int
    sources: list[SourceCounts]


class LoaderStats(TypedDict):
    """The result of `TrainLoader.stats`."""

    retries: int
    cut: int
    sources: list[NamedCounts]


class DataFingerprint(TypedDict):
    """The values that, besides the recipe, determine the order of the data. `tokenizer`: SHA-256."""

    tokenizer: str | None
    streams: int
    seed: int
    sources: list[Mapping[str, object]]


@dataclass(frozen=True)
class Batch:
    """This rank's rows of one global batch.

    `micro_batches` hold the model's inputs by name, [B, …] each; `batch[name]` concatenates them to [R, …] if their
    lengths are equal. `row_sources` holds the index in data.train of each row's source [R]. `state` is JSON-able:
    stream → state of this rank's streams after this batch. `num_tokens` are those of the rows, without padding.
    """

    micro_batches: tuple[Tensors, ...]
    row_sources: tuple[int, ...]
    state: StreamStates
    num_tokens: int = 0

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.cat([tensors[name] for tensors in self.micro_batches])


@dataclass
class _OwnRows:
    """The rows g ≡ dp_rank (mod N) in their order, made on demand."""

    streams: dict[int, Stream]
    num_streams: int
    dp_rank: int
    dp_size: int
    rows_per_batch: int
    micro_batch: int
    format: Rows

    def next_batch(self) -> Batch:
        before = self._num_tokens()
        drawn = [self._next_row() for _ in range(self.rows_per_batch)]
        rows = [row for row, _ in drawn]
        cuts = range(0, self.rows_per_batch, self.micro_batch)
        micro_batches = tuple(self.format.collate(rows[cut : cut + self.micro_batch]) for cut in cuts)
        state = {str(index): stream.state() for index, stream in self.streams.items()}
        return Batch(micro_batches, tuple(source for _, source in drawn), state, self._num_tokens() - before)

    def _num_tokens(self) -> int:
        return sum(source.num_tokens for stream in self.streams.values() for source in stream.by_source)

    def _next_row(self) -> Any:
        done = sum(stream.num_rows for stream in self.streams.values())
        stream = self.streams[(self.dp_rank + done * self.dp_size) % self.num_streams]
        drawn = stream.next_row()
        assert drawn is not None, "a training stream never ends"
        return drawn

    def check_aligned(self) -> None:
        """Raise DataError unless all streams are at the same global row."""
        done = sum(stream.num_rows for stream in self.streams.values())
        position = self.dp_rank + done * self.dp_size
        for index, stream in self.streams.items():
            if stream.num_rows != len(range(index, position, self.num_streams)):
                raise DataError("the streams' data states are of different steps; resume from a single checkpoint.")

    def counts(self) -> list[SourceCounts]:
        """Per source, summed over this rank's streams since the loader began."""
        columns = zip(*(stream.by_source for stream in self.streams.values()), strict=True)
        return [
            {
                "rows": sum(stream.num_rows for stream in streams),
                "tokens": sum(stream.num_tokens for stream in streams),
                "documents": sum(stream.num_documents for stream in streams),
                "skipped": sum(stream.windows.reader.num_skipped for stream in streams),
                "left_out": added([stream.windows.reader.left_out.counts() for stream in streams]),
                "epochs": max(stream.position.epoch for stream in streams),
            }
            for streams in columns
        ]


@dataclass
class _Feed:
    """State shared by the thread and the loader; has no reference to the loader, so the loader can be collected."""

    rows: _OwnRows
    retry: Retry
    ready: queue.Queue[tuple[Batch, Counts] | BaseException]
    requests_before: int = 0
    thread: threading.Thread | None = None
    closed: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        try:
            while not self.closed.is_set():
                batch = self.rows.next_batch()
                counts: Counts = {
                    "retries": self.retries(),
                    "cut": self.rows.format.num_cut,
                    "sources": self.rows.counts(),
                }
                self._put((batch, counts))
        except Stopped:
            return
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            self._put(error)
        finally:
            for stream in self.rows.streams.values():
                stream.close()

    def retries(self) -> int:
        """The number of retries: of reads, and of requests since the loader began to open sources."""
        return self.retry.count + WEB.count - self.requests_before

    def _put(self, item: tuple[Batch, Counts] | BaseException) -> None:
        while not self.closed.is_set():
            try:
                self.ready.put(item, timeout=POLL_SECONDS)
                break
            except queue.Full:
                continue

    def close(self) -> None:
        self.closed.set()
        self.retry.stop.set()
        with contextlib.suppress(queue.Empty):  # Unblocks a thread that waits to put its batch.
            while True:
                self.ready.get_nowait()
        if self.thread is not None and self.thread is not threading.current_thread():
            # Long enough to finish the current batch; a thread blocked on the network ends with the process.
            self.thread.join(timeout=5.0)


class TrainLoader:
    """Endless batches of this rank, in the global order of the recipe.

    Row g = step · global_batch + j of the run comes from stream g mod `streams`; data-parallel rank `dp_rank` of
    `dp_size` makes the rows with g mod `dp_size` = `dp_rank`, ordered by g. `dp_size` must divide `streams` and
    `global_batch`.

    Raises:
        DataError: a source cannot be opened; `next` also raises errors from reading ahead.
    """

    def __init__(
        self,
        inputs: FormatInputs,
        *,
        objective: str = "causal_lm",
        global_batch: int,
        micro_batch: int | None = None,
        streams: int,
        seed: int,
        dp_rank: int,
        dp_size: int,
    ) -> None:
        assert streams % dp_size == 0, "the data-parallel size must divide the streams"
        assert global_batch % dp_size == 0, "the data-parallel size must divide the global batch"
        data, spec = inputs.data, objective_spec(objective)
        retry, requests_before = Retry(data.retry_seconds), WEB.count
        opened = [open_for(spec, source, training=True, retry=retry) for source in data.train]
        self._sources = [with_shards(source, streams, retry) for source in opened]
        rows_per_batch, format_ = global_batch // dp_size, make_rows(objective, inputs)
        settings = StreamSettings(
            format_.stream,
            data.shuffle_window,
            streams,
            seed,
            on_error=data.on_error,
            error_limit=data.error_limit,
            order=data.order,
        )
        weights = [source.weight for source in data.train]
        own = range(dp_rank, streams, dp_size)
        rows = _OwnRows(
            streams={index: Stream(index, self._sources, weights, settings, retry) for index in own},
            num_streams=streams,
            dp_rank=dp_rank,
            dp_size=dp_size,
            rows_per_batch=rows_per_batch,
            micro_batch=micro_batch or rows_per_batch,
            format=format_,
        )
        self._feed = _Feed(rows, retry, queue.Queue(maxsize=data.prefetch), requests_before)
        self._finalizer = weakref.finalize(self, self._feed.close)
        self._stats: Counts = {"retries": self._feed.retries(), "cut": 0, "sources": rows.counts()}
        self._failure: BaseException | None = None
        self._provenance: DataFingerprint = {
            "tokenizer": tokenizers.fingerprint(inputs.tokenizer) if inputs.tokenizer is not None else None,
            "streams": streams,
            "seed": seed,
            "sources": [source.fingerprint for source in self._sources],
        }

    def load_state(self, states_by_stream: StreamStates) -> None:
        """Continue after the batch with these states; call it before the first `next`.

        `states_by_stream` holds the merged `Batch.state` of all ranks, whatever their number; this rank takes its own
        streams.

        Raises:
            DataError: a stream is missing, or its state belongs to other sources or another step.
        """
        assert self._feed.thread is None, "the loader reads already"
        streams = self._feed.rows.streams
        missing = [index for index in streams if str(index) not in states_by_stream]
        if missing or len(states_by_stream) > self._feed.rows.num_streams:
            raise DataError(
                f"the data state has {len(states_by_stream)} streams and this run has {self._feed.rows.num_streams}; "
                "set data.streams to the number of the run that wrote the checkpoint."
            )
        for index, stream in streams.items():
            stream.load_state(states_by_stream[str(index)])
        self._feed.rows.check_aligned()

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        self._start()
        while not self._feed.closed.is_set():
            try:
                item = self._feed.ready.get(timeout=POLL_SECONDS)
            except queue.Empty:
                continue
            if isinstance(item, BaseException):
                self._failure = item
                raise item
            batch, self._stats = item
            return batch
        raise StopIteration

    def close(self) -> None:
        """End the background thread; the loader then yields no more batches. A second call does nothing."""
        self._finalizer()

    def fingerprint(self) -> DataFingerprint:
        """The values that, with the recipe, determine the data order: tokenizer (SHA-256), streams, seed, sources."""
        return self._provenance

    @property
    def notes(self) -> list[str]:
        """What people should know of the sources, in words."""
        return [source.found.note for source in self._sources if source.found is not None and source.found.note]

    def stats(self) -> LoaderStats:
        """Counts since this loader began, up to the newest batch returned, for this rank's streams.

        `retries` (also of requests, from opening on), `cut` (tokens that did not fit a row), and per source
        `name`, `rows`, `tokens`, `documents` (finished), `skipped` (empty or incomplete; counted when read, so up to a
        window early), `left_out` (rows that nothing can be learned from) and `epochs`
        (finished passes of the furthest stream).
        """
        counted = zip(self._sources, self._stats["sources"], strict=True)
        named: list[NamedCounts] = [{"name": source.name, **counts} for source, counts in counted]
        return {"retries": self._stats["retries"], "cut": self._stats["cut"], "sources": named}

    def _start(self) -> None:
        if self._feed.thread is None:
            # A daemon thread, so that an exit without `close` does not block; the finalizer joins it.
            self._feed.thread = threading.Thread(target=self._feed.run, name="shardyard-data", daemon=True)
            self._feed.thread.start()
