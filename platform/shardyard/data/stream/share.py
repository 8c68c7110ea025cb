"""Streams' shares of a source, and places in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource
from shardyard.data.sources.wording import in_words


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
    the share's dataset before this table, `row` the number of rows of the table already read. Where rows are read by
    their number, `state` holds the number of the file, and the examples before it, instead. `whole` is the place in the
    whole source, not in the share.
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
    Local files are read by the numbers of their rows (`data/index/`), so that each stream reads its own. Any other
    shard is read once in each rank, which deals its rows to the streams (`dealt.py`).
    """
    shards = source.dataset.num_shards
    if shards >= streams:
        return Share(source, stream, streams, source.dataset.shard(streams, stream, contiguous=False), 1, 0)
    part = source.dataset.shard(shards, stream % shards, contiguous=False)
    return Share(source, stream, streams, part, len(range(stream % shards, streams, shards)), stream // shards)
