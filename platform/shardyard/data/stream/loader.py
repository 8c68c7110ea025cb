"""The training loader: this rank's rows of every global batch, prepared by one background thread.

Ranks are data-parallel ranks: those that read different rows. All other ranks read the same rows as one of them.
Legend: R = rows of this rank in one global batch, B = rows of a micro-batch, L = streams, N = data-parallel ranks.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypedDict

import torch

from shardyard.data.formats import FormatInputs
from shardyard.data.index.rows import unpack_later
from shardyard.data.mixture.batches import BatchPlan, StageBatches, batch_plan, mixture_of
from shardyard.data.readers.copies import each_its_own
from shardyard.data.readers.crew import Crew, OwnThread, ThreadReaders
from shardyard.data.readers.part import OwnStreams, SourceCounts, added_counts, counts_of, in_order
from shardyard.data.readers.processes import ProcessReaders, ReaderKind, default_kind, in_processes
from shardyard.data.readers.shelf import Closed, Shelf
from shardyard.data.sources.retry import Retry, Stopped
from shardyard.data.sources.web import WEB
from shardyard.data.stream.cuts import NO_CUTS, Cuts
from shardyard.data.stream.held_out import HeldOut, held_out_rows, validation_sources
from shardyard.data.stream.length_groups import rows_per_batch_of
from shardyard.data.stream.reader import with_shards
from shardyard.data.stream.rows import Tensors
from shardyard.data.stream.streams import Stream, StreamSettings, StreamState, StreamStates
from shardyard.data.tokenized.opening import open_documents
from shardyard.data.tokenizers import tokenizer as tokenizers
from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.mixture.weights import short_names, weights_of

__all__ = ["Batch", "HeldOut", "TrainLoader", "held_out_rows", "validation_sources"]

# Prepared batches take at most this, or are one: a quarter of what a rank may need beside its model.
PREFETCH_BYTES = 1 << 29
EXHAUSTED = (
    "the sources do not fill another global batch: `epochs` and `tokens` of data.train allow no more rows. Raise them, "
    "or lower train.global_batch."
)


class NamedCounts(SourceCounts):
    """Counts of one source, with its name."""

    name: str


class LoaderStats(TypedDict):
    """The result of `TrainLoader.stats`."""

    retries: int
    cut: int
    sources: list[NamedCounts]


def filtered_share(stats: LoaderStats) -> float:
    """The share of the documents that data.filters removed, of these and those that are in finished rows."""
    removed = sum(sum(source["left_out"]["filtered"].values()) for source in stats["sources"])
    return removed / max(1, removed + sum(source["documents"] for source in stats["sources"]))


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
    stream → state of this rank's streams after this batch. `num_tokens` are those of the rows, without padding;
    `cuts` is what they lost by cutting. `more`
    is false once the rank can make no further batch, because the sources are exhausted. Rows with which a batch was
    filled up then have the source -1.
    """

    micro_batches: tuple[Tensors, ...]
    row_sources: tuple[int, ...]
    state: StreamStates
    num_tokens: int = 0
    more: bool = True
    cuts: Cuts = NO_CUTS

    def __getitem__(self, name: str) -> torch.Tensor:
        return torch.cat([tensors[name] for tensors in self.micro_batches])


@dataclass(frozen=True)
class _Ready:
    """A batch, and the counts up to it of the streams that it is from."""

    batch: Batch
    counts: Mapping[int, Sequence[SourceCounts]]
    cut: int
    retries: int

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensors in self.batch.micro_batches for tensor in tensors.values())


@dataclass
class _Batches:
    """The rows g ≡ dp_rank (mod N) in their order, batch by batch."""

    streams: dict[int, Stream]
    num_streams: int
    dp_rank: int
    dp_size: int
    plan: BatchPlan
    crew: Crew
    pin: torch.device | None = None
    states: dict[str, StreamState] = field(default_factory=dict)
    # The number of this rank's next row.
    next_row: int = 0

    def start(self) -> None:
        """Begin at the states of the streams."""
        if self.pin is not None:
            # A thread begins on the first GPU, and pinning would make a context there.
            torch.cuda.set_device(self.pin)
        self.states = {str(index): stream.state() for index, stream in self.streams.items()}
        self.next_row = sum(stream.num_rows for stream in self.streams.values())
        self.crew.start(self.next_row, self.states)

    def next_batch(self) -> _Ready | None:
        """The next batch; None if the sources have too few rows for it."""
        parts = self.crew.next()
        count, format_ = self.plan.size_at(self.next_row), self.plan.format_at(self.next_row)
        drawn = list(in_order(parts, self.next_row, count, len(self.streams)))
        made = [row for row in drawn if row is not None]
        if len(made) < count:
            return None
        rows = [row for row, _ in made]
        step = self.plan.micro_batch_at(self.next_row)
        micro_batches = tuple(self._pinned(format_.collate(rows[cut : cut + step])) for cut in range(0, count, step))
        self.next_row += count
        for part in parts:
            self.states |= {str(index): state for index, state in part.states.items()}
        num_tokens = sum(part.num_tokens for part in parts)
        return _Ready(
            Batch(
                micro_batches,
                tuple(source for _, source in made),
                dict(self.states),
                num_tokens,
                cuts=sum((part.cuts for part in parts), NO_CUTS),
            ),
            {index: counts for part in parts for index, counts in part.counts.items()},
            sum(part.num_cut for part in parts),
            sum(part.num_retries for part in parts),
        )

    def _pinned(self, tensors: Tensors) -> Tensors:
        """Copies from pinned memory do not wait for the device."""
        return tensors if self.pin is None else {name: tensor.pin_memory() for name, tensor in tensors.items()}

    def check_aligned(self) -> None:
        """Raise DataError unless all streams are at the same global row."""
        done = sum(stream.num_rows for stream in self.streams.values())
        position = self.dp_rank + done * self.dp_size
        for index, stream in self.streams.items():
            if stream.num_rows != len(range(index, position, self.num_streams)):
                raise DataError("the streams' data states are of different steps; resume from a single checkpoint.")


@dataclass
class _Feed:
    """State shared by the thread and the loader; has no reference to the loader, so the loader can be collected."""

    rows: _Batches
    retry: Retry
    ready: Shelf[_Ready | BaseException]
    requests_before: int = 0
    thread: threading.Thread | None = None

    def run(self) -> None:
        try:
            self.rows.start()
            if self.rows.plan.is_finite:
                self._run_to_the_end()
            while not self.ready.is_closed:
                made = self._made()
                assert made is not None, "the sources do not end"
                self.ready.put(made, made.num_bytes)
        except (Stopped, Closed):
            return
        except BaseException as error:  # noqa: BLE001 - handed to the consumer, who raises it
            with contextlib.suppress(Closed):
                self.ready.put(error)
        finally:
            self.rows.crew.finish()

    def _run_to_the_end(self) -> None:
        """Make batches one ahead, so that each says whether a row follows."""
        made = self._made()
        while made is not None:
            following = self._made()
            more = following is not None and any(source >= 0 for source in following.batch.row_sources)
            self.ready.put(replace(made, batch=replace(made.batch, more=more)), made.num_bytes)
            made = following
        raise DataError(EXHAUSTED)

    def _made(self) -> _Ready | None:
        made = self.rows.next_batch()
        return None if made is None else replace(made, retries=made.retries + self.retries())

    def retries(self) -> int:
        """The number of retries: of reads, and of requests since the loader began to open sources."""
        return self.retry.count + WEB.count - self.requests_before

    def close(self) -> None:
        self.retry.stop.set()
        self.ready.close()
        self.rows.crew.close()
        if self.thread is not None and self.thread is not threading.current_thread():
            # Long enough to finish the current batch; a thread blocked on the network ends with the process.
            self.thread.join(timeout=5.0)


def _crew(streams: dict[int, Stream], plans: Sequence[BatchPlan], readers: int) -> Crew:
    """Readers in this process, each with a plan of its own."""
    if not readers:
        return OwnThread(OwnStreams(streams, plans[0]), plans[0].size_at)
    own = [OwnStreams(streams, plan, reader=reader, readers=readers) for reader, plan in enumerate(plans)]
    return ThreadReaders(own, plans[0].size_at)


class TrainLoader:
    """The batches of this rank, in the global order of the recipe: endless, unless each source has a budget.

    Row g = step · global_batch + j of the run comes from stream g mod `streams`; data-parallel rank `dp_rank` of
    `dp_size` makes the rows with g mod `dp_size` = `dp_rank`, ordered by g. `dp_size` must divide `streams` and
    `global_batch`.

    Args:
        readers: they make rows, at most one for each stream of this rank; 0: the loader's own thread makes
            them. Batches and states do not depend on it.
        readers_are: threads or processes. Default: threads for packed text.
        stages: with other sizes and weights, the first one at the beginning.
        pin: the GPU to which batches are copied, for which they are put into pinned memory.

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
        readers: int = 0,
        readers_are: ReaderKind | None = None,
        stages: Sequence[StageBatches] = (),
        pin: torch.device | None = None,
    ) -> None:
        assert streams % dp_size == 0, "the data-parallel size must divide the streams"
        whole = (global_batch, *(stage.global_batch for stage in stages))
        assert all(rows % dp_size == 0 for rows in whole), "the data-parallel size must divide the global batch"
        data = inputs.data
        retry, requests_before = Retry(data.retry_seconds), WEB.count
        opened = [open_documents(inputs, objective, source, training=True, retry=retry) for source in data.train]
        self._sources = [with_shards(source, streams, retry) for source in opened]
        own, weights = list(range(dp_rank, streams, dp_size)), weights_of(data)
        number = min(readers, len(own))
        remade = functools.partial(
            TrainLoader,
            inputs,
            objective=objective,
            global_batch=global_batch,
            micro_batch=micro_batch,
            streams=streams,
            seed=seed,
            dp_rank=dp_rank,
            dp_size=dp_size,
            stages=stages,
        )
        make, self._readers_note = in_processes(
            remade, number, readers_are or default_kind(objective_spec(objective).rows)
        )
        one_stage = StageBatches(0, global_batch, micro_batch or global_batch, data.sequence_length, tuple(weights))
        mixture = mixture_of(data, objective, stages)
        is_finite = mixture is not None and mixture.is_finite
        plans = [
            batch_plan(stages or (one_stage,), one, objective, dp_size, is_finite=is_finite)
            for one in each_its_own(inputs, 1 if make is not None else max(1, number))
        ]
        settings = StreamSettings(
            plans[0].formats[0].stream,
            data.shuffle_window,
            streams,
            seed,
            on_error=data.on_error,
            error_limit=data.error_limit,
            order=data.order,
            group=rows_per_batch_of(data, global_batch, streams),
            mixture=mixture,
        )
        self._unpacked = [unpack_later(source.dataset, streams) for source in self._sources]
        made = {
            index: Stream(
                index,
                self._sources,
                weights,
                plans[turn % len(plans)].streams_of(settings),
                retry,
            )
            for turn, index in enumerate(own)
        }
        rows = _Batches(
            streams=made,
            num_streams=streams,
            dp_rank=dp_rank,
            dp_size=dp_size,
            plan=plans[0],
            crew=_crew(made, plans, number) if make is None else ProcessReaders(make, number),
            pin=pin,
        )
        self._feed = _Feed(rows, retry, Shelf(data.prefetch, PREFETCH_BYTES), requests_before)
        self._finalizer = weakref.finalize(self, self._feed.close)
        self._counts: dict[int, Sequence[SourceCounts]] = {index: counts_of(stream) for index, stream in made.items()}
        self._cut, self._retries = 0, self._feed.retries()
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

    def state(self) -> StreamStates:
        """The states of this rank's streams before the first batch."""
        assert self._feed.thread is None, "the loader reads already; a batch has the state after it"
        return {str(index): stream.state() for index, stream in self._feed.rows.streams.items()}

    def readings(self, reader: int, readers: int) -> tuple[OwnStreams, Callable[[int], int], Callable[[], int]]:
        """For a process that makes rows of this rank: the streams of one reader, rows of a batch by its first row, and
        the number of retries.
        """
        plan = self._feed.rows.plan
        return (
            OwnStreams(self._feed.rows.streams, plan, reader=reader, readers=readers),
            plan.size_at,
            self._feed.retries,
        )

    def __iter__(self) -> TrainLoader:
        return self

    def __next__(self) -> Batch:
        if self._failure is not None:
            raise self._failure
        self._start()
        try:
            item = self._feed.ready.get()
        except Closed:
            raise StopIteration from None
        if isinstance(item, BaseException):
            self._failure = item
            raise item
        self._counts |= item.counts
        self._cut, self._retries = item.cut, item.retries
        return item.batch

    def close(self) -> None:
        """End the background thread; the loader then yields no more batches. A second call does nothing."""
        self._finalizer()

    def fingerprint(self) -> DataFingerprint:
        """The values that, with the recipe, determine the data order: tokenizer (SHA-256), streams, seed, sources."""
        return self._provenance

    @property
    def notes(self) -> list[str]:
        """What people should know of the sources, in words."""
        found = [source.found.note for source in self._sources if source.found is not None]
        return [note for note in (*found, *self._unpacked, self._readers_note) if note]

    @property
    def source_names(self) -> list[str]:
        """A short name for each source."""
        return short_names([source.name for source in self._sources])

    @property
    def fills(self) -> bool:
        """Whether batches are filled up with rows without targets once some streams are exhausted."""
        return self._feed.rows.plan.fills

    def stats(self) -> LoaderStats:
        """Counts since this loader began, up to the newest batch returned, for this rank's streams.

        `retries` (also of requests, from opening on), `cut` (tokens that did not fit a row), and per source
        `name`, `rows`, `tokens`, `documents` (finished), `skipped` (empty or incomplete; counted when read, so up to a
        window early), `left_out` (rows that nothing can be learned from) and `epochs`
        (finished passes of the furthest stream).
        """
        counted = zip(self._sources, added_counts(list(self._counts.values())), strict=True)
        named: list[NamedCounts] = [{"name": source.name, **counts} for source, counts in counted]
        return {"retries": self._retries, "cut": self._cut, "sources": named}

    def _start(self) -> None:
        if self._feed.thread is None:
            # A daemon thread, so that an exit without `close` does not block; the finalizer joins it.
            self._feed.thread = threading.Thread(target=self._feed.run, name="shardyard-data", daemon=True)
            self._feed.thread.start()
