"""Shards without an index are read once for all streams of a process, and each stream gets the rows of its own."""

from __future__ import annotations

import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.index.records import IrregularError
from shardyard.data.index.rows import RecordRows
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_source
from shardyard.data.stream import dealt, reader
from shardyard.data.stream.reader import ShareReader
from shardyard.data.stream.share import START, Cursor, share_of
from shardyard.data.stream.tables import StreamedTables, TableStream
from shardyard.recipe.schema import Source
from support.data_cases import batches, data, documents, global_rows, merged_state, rows, write_jsonl


@pytest.fixture(autouse=True)
def without_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "indexed_files", lambda *_: None)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Cursor]:
    """The places at which shards were opened."""
    places: list[Cursor] = []
    plain = TableStream.pull

    def pull(self: TableStream) -> Any:
        if self._tables is None:
            places.append(self._cursor)
        return plain(self)

    monkeypatch.setattr(TableStream, "pull", pull)
    return places


def alone(patch: pytest.MonkeyPatch) -> None:
    """Each stream reads for itself."""
    patch.setattr(reader, "_streamed_tables", StreamedTables)


def with_gaps(count: int, seed: int) -> list[str]:
    shuffled = random.Random(seed)
    return [text if shuffled.random() > 0.15 else "" for text in documents(count)]


def test_all_streams_open_a_shard_once(tmp_path: Path, begun: list[Cursor]) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps({"text": t}) + "\n" for t in documents(3000)).encode()))
    recipe = data([Source(path=str(path))], shuffle_window=8, prefetch=1)
    batches(recipe, 10, streams=64, global_batch=64)
    assert len(begun) == 1


def test_a_resumed_run_opens_a_shard_once(tmp_path: Path, begun: list[Cursor]) -> None:
    recipe = data([Source(path=write_jsonl(tmp_path, [documents(6000)]))], shuffle_window=8, prefetch=1)
    options: dict[str, Any] = {"streams": 16, "global_batch": 16}
    undisturbed = [rows(batch) for batch in batches(recipe, 120, **options)]
    state = merged_state(recipe, 100, 1, **options)
    begun.clear()
    assert [rows(batch) for batch in batches(recipe, 20, state, **options)] == undisturbed[100:]
    assert len(begun) == 1
    assert begun[0].example > 1000


def test_epochs_open_a_shard_once_each(tmp_path: Path, begun: list[Cursor]) -> None:
    recipe = data([Source(path=write_jsonl(tmp_path, [["x" * 15] * 64]))], shuffle_window=4, prefetch=1)
    batches(recipe, 40, streams=4, global_batch=4)
    assert len(begun) in (3, 4)
    assert {cursor.example for cursor in begun} == {0}


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    counts=st.lists(st.integers(30, 70), min_size=1, max_size=3),
    streams=st.sampled_from([2, 6, 8]),
    window=st.sampled_from([1, 4, 64]),
    order=st.sampled_from([1, 2]),
    world=st.sampled_from([1, 2]),
    step=st.integers(1, 25),
    most=st.sampled_from([1, 2000, 1 << 31]),
    ahead=st.sampled_from([0, 10, 1 << 16]),
    seed=st.integers(0, 99),
)
def test_global_batches_are_those_of_streams_that_read_alone(
    counts: list[int],
    streams: int,
    window: int,
    order: int,
    world: int,
    step: int,
    most: int,
    ahead: int,
    seed: int,
) -> None:
    """Also with tables of a few rows, of which hardly any may wait, and resumed from either."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealt, "WAITING_BYTES", most)
        patch.setattr(dealt, "AHEAD_ROWS", ahead)
        patch.setattr("shardyard.data.stream.tables.TABLE_ROWS", 7)
        path = write_jsonl(Path(folder), [with_gaps(count, seed) for count in counts])
        other = write_jsonl(Path(folder), [with_gaps(50, seed + 1)], "other")
        sources = [Source(path=path, holdout=0.1), Source(path=other, weight=0.4)]
        recipe = data(sources, shuffle_window=window, order=order)
        options: dict[str, Any] = {"streams": streams, "global_batch": streams, "seed": seed}
        found = global_rows(recipe, step + 3, world, **options)
        state = merged_state(recipe, step, world, **options)
        assert [rows(batch) for batch in batches(recipe, 3, state, **options)] == found[step:]
        alone(patch)
        assert global_rows(recipe, step + 3, 1, **options) == found
        lonely = merged_state(recipe, step, 1, **options)
        assert lonely == state
        assert [rows(batch) for batch in batches(recipe, 3, state, **options)] == found[step:]


@pytest.mark.parametrize("readers", [1, 3])
def test_readers_share_a_shard(tmp_path: Path, begun: list[Cursor], readers: int) -> None:
    path = write_jsonl(tmp_path, [documents(2000)])
    options: dict[str, Any] = {"streams": 8, "global_batch": 8}
    undisturbed = global_rows(data([Source(path=path)], readers=0), 60, 1, **options)
    begun.clear()
    assert global_rows(data([Source(path=path)], readers=readers), 60, 1, **options) == undisturbed
    assert len(begun) == 1


def test_what_nobody_takes_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One stream reads its share to the end while the others have not begun."""
    monkeypatch.setattr(dealt, "WAITING_BYTES", 4000)
    monkeypatch.setattr(dealt, "MANY_ROWS", 100)
    opened = open_source(Source(path=write_jsonl(tmp_path, [documents(6000)])), training=True)
    readers = [ShareReader(share_of(opened, stream, 4), Retry()) for stream in range(4)]
    for one in readers:
        one.seek(START)
    assert readers[0].read(10**6) == documents(6000)[::4]
    (only,) = readers[0]._tables._dealer._passes  # type: ignore[attr-defined]
    assert sum(waiting.num_bytes for waiting in only.dealt.values()) <= 4000
    assert readers[3].read(10**6) == documents(6000)[3::4]


def test_a_failed_read_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardyard.data.stream.tables.TABLE_ROWS", 8)
    monkeypatch.setattr("shardyard.data.sources.retry.wait_seconds", lambda _: 0.0)
    recipe = data([Source(path=write_jsonl(tmp_path, [documents(200)]))])
    options: dict[str, Any] = {"streams": 4, "global_batch": 4}
    undisturbed = global_rows(recipe, 12, 1, **options)
    plain = TableStream.pull
    numbers = iter(range(10**6))

    def pull(self: TableStream) -> Any:
        if next(numbers) % 3 == 2:
            raise ConnectionResetError("reset")
        return plain(self)

    monkeypatch.setattr(TableStream, "pull", pull)
    assert global_rows(recipe, 12, 1, **options) == undisturbed


def test_a_file_that_turns_out_irregular_is_streamed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: list[Cursor]
) -> None:
    """In order 2, rows of an index that cannot be parsed alone are found when they are drawn."""
    monkeypatch.undo()
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))
    recipe = data([Source(path=write_jsonl(tmp_path, [documents(800)]))], order=2, shuffle_window=16)
    options: dict[str, Any] = {"streams": 8, "global_batch": 8}
    regular = global_rows(recipe, 50, 1, **options)
    late = json.dumps({"text": documents(800)[500]})[:12].encode()
    places: list[Cursor] = []
    pull = TableStream.pull

    def counted(self: TableStream) -> Any:
        places.extend([self._cursor] if self._tables is None else [])
        return pull(self)

    monkeypatch.setattr(RecordRows, "_parsed", _irregular(RecordRows._parsed, late))
    monkeypatch.setattr(TableStream, "pull", counted)
    assert global_rows(recipe, 50, 1, **options) == regular
    assert len(places) == 1


def _irregular(plain: Any, late: bytes) -> Any:
    """A parser to which some lines with this text are not one row each."""

    def parsed(self: RecordRows, lines: list[bytes]) -> Any:
        if not any(late in line for line in lines):
            return plain(self, lines)
        self._offsets.distrust()
        raise IrregularError

    return parsed
