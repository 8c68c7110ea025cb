"""Order 2: windows of row numbers, whose rows are read when they are drawn."""

from __future__ import annotations

import json
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.index.offsets import Offsets
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_source
from shardyard.data.stream import reader
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.data.stream.shuffle import DrawnWindow, Windows
from shardyard.errors import DataError
from shardyard.recipe.schema import Data, Source
from support.data_cases import (
    batches,
    data,
    documents,
    documents_of_stream,
    global_rows,
    loader,
    merged_state,
    rows,
    split_documents,
    write_jsonl,
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))


def drawn(train: list[Source], **options: Any) -> Data:
    return data(train, **{"order": 2, **options})


def with_gaps(count: int, seed: int, prefix: str = "d") -> list[str]:
    shuffled = random.Random(seed)
    return [text if shuffled.random() > 0.15 else "" for text in documents(count, prefix)]


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    counts=st.lists(st.integers(30, 70), min_size=1, max_size=4),
    streams=st.sampled_from([2, 6, 8]),
    window=st.sampled_from([1, 4, 64]),
    holdout=st.sampled_from([0.0, 0.2]),
    weight=st.floats(0.1, 9.0),
    world=st.sampled_from([1, 2]),
    step=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_global_batches_depend_on_neither_ranks_nor_interruptions_nor_the_index(
    counts: list[int], streams: int, window: int, holdout: float, weight: float, world: int, step: int, seed: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = write_jsonl(Path(folder), [with_gaps(count, seed) for count in counts])
        other = write_jsonl(Path(folder), [with_gaps(50, seed + 1, "o")], "other")
        recipe = drawn([Source(path=path, holdout=holdout), Source(path=other, weight=weight)], shuffle_window=window)
        options: dict[str, Any] = {"streams": streams, "global_batch": streams, "seed": seed}
        undisturbed = global_rows(recipe, step + 3, world, **options)
        by_index = merged_state(recipe, step, world, **options)
        assert [rows(batch) for batch in batches(recipe, 3, by_index, **options)] == undisturbed[step:]
        patch.setattr(reader, "indexed_files", lambda *_: None)
        assert global_rows(recipe, step + 3, 1, **options) == undisturbed
        assert [rows(batch) for batch in batches(recipe, 3, by_index, **options)] == undisturbed[step:]
        streamed = merged_state(recipe, step, 1, **options)
        patch.undo()
        assert [rows(batch) for batch in batches(recipe, 3, streamed, **options)] == undisturbed[step:]


def test_all_worlds_of_eight_streams(tmp_path: Path) -> None:
    recipe = drawn([Source(path=write_jsonl(tmp_path, [with_gaps(120, 3)]))])
    options: dict[str, Any] = {"streams": 8, "global_batch": 8}
    one = global_rows(recipe, 6, 1, **options)
    for world in (2, 4, 8):
        assert global_rows(recipe, 6, world, **options) == one


@pytest.mark.parametrize("streams", [1, 3])
def test_an_epoch_holds_every_usable_document_once(tmp_path: Path, streams: int) -> None:
    texts = with_gaps(60, 1)
    source = Source(path=write_jsonl(tmp_path, [texts]), holdout=0.2)
    opened = open_source(source, training=True)
    expected = Counter(text for text in texts if text and opened.keeps(text))
    assert 30 < expected.total() < 55
    found: Counter[str] = Counter()
    for stream in range(streams):
        seen = split_documents(documents_of_stream(drawn([source], shuffle_window=4), stream, 150, streams))[:-1]
        epoch = seen[: next(n for n in range(1, len(seen)) if len(set(seen[:n])) < n) - 1]
        assert Counter(seen[len(epoch) : 2 * len(epoch)]) == Counter(epoch)
        found += Counter(epoch)
    assert found == expected


def test_a_window_is_of_so_many_rows(tmp_path: Path) -> None:
    texts = [f"{n:02d}" if n % 3 else "" for n in range(12)]
    recipe = drawn([Source(path=write_jsonl(tmp_path, [texts]))], sequence_length=9, shuffle_window=6)
    stream = split_documents(documents_of_stream(recipe, 0, 10, 1))
    assert [set(stream[:4]), set(stream[4:8])] == [{"01", "02", "04", "05"}, {"07", "08", "10", "11"}]


def test_only_rows_that_are_drawn_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = drawn([Source(path=write_jsonl(tmp_path, [documents(20_000)]))], shuffle_window=256, prefetch=1)
    numbers: list[int] = []
    plain = Offsets.read

    def read(self: Offsets, some: Any) -> list[bytes]:
        numbers.extend(some)
        return plain(self, some)

    monkeypatch.setattr(Offsets, "read", read)
    with loader(recipe, streams=64, global_batch=64) as opened:
        opened._feed.rows.next_batch()
    # A row of 17 tokens needs one or two documents and the beginning of the next; documents are drawn by 1, 2, 4.
    assert len(numbers) <= 64 * 7


def test_a_stream_without_usable_documents_reads_the_whole_source(tmp_path: Path) -> None:
    texts = [text if number % 2 else "" for number, text in enumerate(documents(20))]
    recipe = drawn([Source(path=write_jsonl(tmp_path, [texts]))], shuffle_window=3)
    options: dict[str, Any] = {"streams": 2, "global_batch": 2}
    undisturbed = global_rows(recipe, 40, 1, **options)
    first = split_documents(documents_of_stream(recipe, 0, 40, 2))[:-1]
    assert set(first[:10]) == set(texts) - {""}
    assert global_rows(recipe, 40, 2, **options) == undisturbed
    for step in (1, 7, 30):
        state = merged_state(recipe, step, 1, **options)
        assert [rows(batch) for batch in batches(recipe, 5, state, **options)] == undisturbed[step : step + 5]


def test_a_window_over_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than stay open, each of which is searched again when rows of it are drawn."""
    recipe = drawn(
        [Source(path=write_jsonl(tmp_path, [with_gaps(9, n, f"{n}-") for n in range(14)]))], shuffle_window=50
    )
    options: dict[str, Any] = {"streams": 2, "global_batch": 2}
    indexed = global_rows(recipe, 60, 1, **options)
    monkeypatch.setattr(reader, "indexed_files", lambda *_: None)
    assert global_rows(recipe, 60, 2, **options) == indexed


def test_a_source_of_empty_documents_is_an_error(tmp_path: Path) -> None:
    recipe = drawn([Source(path=write_jsonl(tmp_path, [[""] * 20]))])
    for streams in (1, 4):
        with loader(recipe, streams=streams) as opened, pytest.raises(DataError, match="yields no documents"):
            next(opened)


def test_a_window_with_examples_keeps_their_places(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [with_gaps(40, 2)])
    window = windows(path).next()
    assert isinstance(window, DrawnWindow)
    assert window.size == 8
    usable = [number for number in range(8) if window.drawn(number, number + 1)]
    assert [example for _, example in window.drawn(0, 8)] == window.examples
    assert [number for number, _ in window.drawn(0, 8)] == usable
    assert window.following(-1) == usable[0]
    assert [window.following(number) for number in usable] == [*usable[1:], None]
    for index, example in enumerate(window.examples):
        row = int(window.place(index).rpartition(" ")[2]) - 1
        assert json.loads(Path(path.replace("*", "000")).read_text().splitlines()[row])["text"] == example


def windows(path: str) -> Windows:
    share = share_of(open_source(Source(path=path), training=True), 0, 1)
    return Windows(ShareReader(share, Retry()), (1, 0, 0), 8, repeat=True, order=2)
