"""The global order: a function of recipe, tokenizer and seed, whoever reads it and wherever it was interrupted."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.stream import tables
from shardyard.data.stream.shuffle import keyed_permutation
from shardyard.data.stream.streams import Mixture
from shardyard.errors import DataError
from shardyard.recipe.schema import Data, Source
from support.data_cases import (
    SEPARATOR,
    batches,
    bytes_tokenizer,
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


def two_sources(folder: Path, **options: object) -> Data:
    """One source with more shards than streams and one with fewer, so that both ways of sharing are in play."""
    many = write_jsonl(folder, [documents(6, "m", 6 * shard) for shard in range(8)], "many")
    few = write_jsonl(folder, [documents(40, "f"), documents(37, "g")], "few")
    return data([Source(path=many, weight=0.6), Source(path=few, weight=0.4)], **options)


def test_the_number_of_ranks_does_not_change_the_order(tmp_path: Path) -> None:
    recipe = two_sources(tmp_path)
    one = global_rows(recipe, 12, 1)
    assert one == global_rows(recipe, 12, 2)
    assert one == global_rows(recipe, 12, 4)
    assert len({str(row) for batch in one for row in batch}) > 40


def test_more_streams_than_rows_in_a_batch(tmp_path: Path) -> None:
    recipe = two_sources(tmp_path)
    options = {"streams": 8, "global_batch": 4}
    one = global_rows(recipe, 9, 1, **options)
    assert one == global_rows(recipe, 9, 2, **options)
    state = merged_state(recipe, 3, 4, **options)
    assert [rows(batch) for batch in batches(recipe, 6, state, **options)] == one[3:]


@settings(max_examples=12, deadline=None)
@given(
    step=st.integers(1, 25),
    length=st.integers(2, 70),
    window=st.sampled_from([1, 3, 64]),
    weight=st.floats(0.05, 20.0),
    worlds=st.sampled_from([(1, 1), (1, 4), (2, 4), (4, 2), (4, 1)]),
    isolate=st.booleans(),
    packing=st.sampled_from([None, "best_fit"]),
    order=st.sampled_from([1, 2]),
)
def test_resume_at_any_step_onto_any_number_of_ranks(
    step: int, length: int, window: int, weight: float, worlds: tuple[int, int], isolate: bool, packing: Any, order: int
) -> None:
    before, after = worlds
    with tempfile.TemporaryDirectory() as folder:
        options = {"shuffle_window": window, "isolate_documents": isolate, "packing": packing, "order": order}
        recipe = two_sources(Path(folder), sequence_length=length, **options)
        second = recipe.train[1].model_copy(update={"weight": weight})
        recipe = recipe.model_copy(update={"train": [recipe.train[0], second]})
        undisturbed = [rows(batch) for batch in batches(recipe, step + 3)]
        state = merged_state(recipe, step, before)
        resumed = [batches(recipe, 3, state, dp_rank=rank, dp_size=after) for rank in range(after)]
        joined = [
            [row for parts in zip(*map(rows, ranks), strict=True) for row in parts]
            for ranks in zip(*resumed, strict=True)
        ]
    assert joined == undisturbed[step:]


def test_resume_within_a_large_table_and_from_row_groups(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name, group in (("groups", 50), ("one", 5000)):
        pq.write_table(pa.table({"text": documents(1500)}), tmp_path / f"{name}.parquet", row_group_size=group)
        recipe = data([Source(path=str(tmp_path / f"{name}.parquet"))], sequence_length=300, shuffle_window=40)
        undisturbed = [rows(batch) for batch in batches(recipe, 40)]
        for step in (5, 19, 31):
            resumed = batches(recipe, 5, merged_state(recipe, step, 2))
            assert [rows(batch) for batch in resumed] == undisturbed[step : step + 5]


@pytest.mark.parametrize("table_rows", [3, 17])
def test_streams_that_share_a_shard_take_every_kth_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_rows: int
) -> None:
    """A table holds nothing for some of the five streams, or several documents for each: resuming must not slip."""
    monkeypatch.setattr(tables, "TABLE_ROWS", table_rows)
    texts = documents(53)
    recipe = data([Source(path=write_jsonl(tmp_path, [texts]))], shuffle_window=1)
    undisturbed = [rows(batch) for batch in batches(recipe, 30, streams=5, global_batch=5)]
    for stream in range(5):
        found = split_documents(documents_of_stream(recipe, stream, 30, 5))
        assert found[: len(texts[stream::5])] == texts[stream::5]
    for step in range(1, 25, 2):
        state = merged_state(recipe, step, 1, streams=5, global_batch=5)
        assert rows(batches(recipe, 1, state, streams=5, global_batch=5)[0]) == undisturbed[step]


@pytest.mark.parametrize("streams", [1, 2, 4])
def test_an_epoch_holds_every_document_once_and_unchanged(tmp_path: Path, streams: int) -> None:
    """Two shards for one, two and four streams: whole shards, and every second example of one."""
    texts = [*documents(30), "ümläut — 漢字 \U0001f600", "a\nb\r\n\tc  ", "<|endoftext|>"]
    path = write_jsonl(tmp_path, [texts[:17], texts[17:]])
    recipe = data([Source(path=path)], shuffle_window=4)
    found: Counter[str] = Counter()
    for stream in range(streams):
        seen = split_documents(documents_of_stream(recipe, stream, 130, streams))[:-1]
        epoch = seen[: next(n for n in range(1, len(seen)) if len(set(seen[:n])) < n) - 1]
        again = seen[len(epoch) : 2 * len(epoch)]
        assert Counter(epoch) == Counter(again)
        found += Counter(epoch)
    assert found == Counter(texts)


def test_every_token_is_a_target_exactly_once(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [documents(50)])
    recipe = data([Source(path=path)], sequence_length=11)
    made = batches(recipe, 60, streams=1, global_batch=1)
    inputs = [token for batch in made for token in batch["input_ids"][0].tolist()]
    labels = [token for batch in made for token in batch["labels"][0].tolist()]
    assert labels[:-1] == inputs[1:]
    assert inputs[0] == SEPARATOR


def test_windows_and_epochs_are_shuffled_differently_and_within_their_bounds(tmp_path: Path) -> None:
    texts = [f"{n:02d}" for n in range(12)]
    recipe = data([Source(path=write_jsonl(tmp_path, [texts]))], sequence_length=9, shuffle_window=6)
    stream = split_documents(documents_of_stream(recipe, 0, 16, 1))
    windows = [[int(text) for text in stream[start : start + 6]] for start in range(0, 36, 6)]
    assert [set(window) for window in windows] == [set(range(6)), set(range(6, 12))] * 3
    orders = [tuple(n % 6 for n in window) for window in windows]
    assert len(set(orders)) == 6


def test_a_window_of_one_keeps_the_order_of_the_source(tmp_path: Path) -> None:
    texts = documents(9)
    recipe = data([Source(path=write_jsonl(tmp_path, [texts]))], shuffle_window=1)
    assert split_documents(documents_of_stream(recipe, 0, 20, 1))[:18] == texts * 2


def test_the_seed_changes_the_order(tmp_path: Path) -> None:
    recipe = two_sources(tmp_path)
    assert global_rows(recipe, 4, 1, seed=1) != global_rows(recipe, 4, 1, seed=2)
    assert global_rows(recipe, 4, 1, seed=1) == global_rows(recipe, 4, 1, seed=1)


def test_permutations_and_draws_never_change() -> None:
    """Golden values: a checkpoint of today must read on in the same order tomorrow."""
    assert keyed_permutation(8, 7, 0, 1, 0, 2).tolist() == [5, 1, 3, 6, 7, 2, 4, 0]
    mixture = Mixture([0.5, 0.3, 0.2], 7, 3)
    assert [mixture.draw(row) for row in range(250, 262)] == [0, 0, 0, 1, 2, 0, 0, 1, 0, 0, 0, 1]


def test_weights_are_shares_of_rows(tmp_path: Path) -> None:
    recipe = two_sources(tmp_path)
    counts = Counter(source for batch in batches(recipe, 300) for source in batch.row_sources)
    # 1200 draws at 0.6: four standard deviations are 0.057.
    assert counts[0] / 1200 == pytest.approx(0.6, abs=0.057)
    assert counts[0] + counts[1] == 1200
    draws = Counter(Mixture([1, 2, 5], 3, 0).draw(row) for row in range(20000))
    assert [draws[n] / 20000 for n in range(3)] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=0.02)


def test_a_stream_without_documents_reads_the_whole_source(tmp_path: Path) -> None:
    texts = documents(3)
    recipe = data([Source(path=write_jsonl(tmp_path, [texts]))])
    assert set(split_documents(documents_of_stream(recipe, 3, 12, 4))[:3]) == set(texts)


def test_a_source_of_empty_documents_is_an_error_not_an_endless_loop(tmp_path: Path) -> None:
    recipe = data([Source(path=write_jsonl(tmp_path, [["", "", ""]]))])
    with loader(recipe, streams=1) as opened, pytest.raises(DataError, match="yields no documents"):
        next(opened)


def test_state_is_small_and_plain(tmp_path: Path) -> None:
    recipe = two_sources(tmp_path)
    state = batches(recipe, 40)[-1].state
    assert set(state) == {"0", "1", "2", "3"}
    for stream in state.values():
        assert json.loads(json.dumps(stream)) == stream
        assert len(json.dumps(stream)) < 1024 * len(recipe.train)


def test_states_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    recipe = two_sources(tmp_path)
    state = merged_state(recipe, 2, 1)
    single = recipe.model_copy(update={"train": recipe.train[:1]})
    cases = [
        (recipe, {"streams": 2, "global_batch": 4}, state, "the data state has 4 streams and this run has 2"),
        (recipe, {}, {"0": state["0"]}, "the data state has 1 streams and this run has 4"),
        (single, {}, state, r"of 2 sources and data.train has 1"),
        (recipe, {}, {**state, "1": {"rows": 2}}, "stream 1 is damaged"),
        (recipe, {}, {**state, "1": merged_state(recipe, 3, 1)["1"]}, "different steps"),
    ]
    for case, options, given_state, message in cases:
        with loader(case, **options) as opened, pytest.raises(DataError, match=message):
            opened.load_state(given_state)


def test_the_tokenizer_needs_a_separator(tmp_path: Path) -> None:
    bare = type(bytes_tokenizer())(tokenizer_object=bytes_tokenizer().backend_tokenizer)
    recipe = data([Source(path=write_jsonl(tmp_path, [documents(9)]))])
    with pytest.raises(DataError, match="neither a bos nor an eos"):
        batches(recipe, 1, tokenizer=bare)
