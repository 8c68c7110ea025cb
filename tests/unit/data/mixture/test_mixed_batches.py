"""Batches of planned mixtures: the same global sequence at any world size and after any interruption."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.mixture.batches import StageBatches
from shardyard.data.stream.loader import Batch
from shardyard.errors import DataError
from shardyard.recipe.schema import Data, Source, Stage
from support.data_cases import SEPARATOR, batches, data, documents, loader, merged_state, rows, write_jsonl

STREAMS = 8


def recipe_in(folder: Path, **options: Any) -> Data:
    """Two sources, one with as many shards as streams, and one of few documents."""
    many = write_jsonl(folder, [documents(9, "m", 9 * shard) for shard in range(8)], "many")
    few = write_jsonl(folder, [documents(21, "f"), documents(17, "g")], "few")
    given = {name: options.pop(name) for name in ("many", "few") if name in options}
    return data(
        [Source(path=many, **{"weight": 2.0, **given.get("many", {})}), Source(path=few, **given.get("few", {}))],
        **options,
    )


def stages_of(recipe: Data, *parts: tuple[int, int, int, tuple[float, ...]]) -> list[StageBatches]:
    """Stages from (steps, rows a step, tokens a row, weights)."""
    found, first = [], 0
    for steps, batch, length, weights in parts:
        found.append(StageBatches(first, batch, batch, length, weights))
        first += steps * batch
    return found


def globally(recipe: Data, count: int, size: int, state: Any = None, **options: Any) -> list[list[Any]]:
    """The rows of global batches in the order of j, from all ranks."""
    ranks = [
        batches(recipe, count, state, dp_rank=rank, dp_size=size, streams=STREAMS, **options) for rank in range(size)
    ]
    return [[row for parts in zip(*map(rows, step), strict=True) for row in parts] for step in zip(*ranks, strict=True)]


@pytest.mark.slow
@settings(max_examples=14, deadline=None)
@given(
    worlds=st.sampled_from([(1, 2), (2, 1), (4, 8), (8, 1), (2, 4)]),
    step=st.integers(1, 11),
    first=st.integers(1, 9),
    lengths=st.sampled_from([(16, 16), (16, 40), (24, 12)]),
    sizes=st.sampled_from([(8, 8), (8, 16), (16, 8)]),
    limits=st.sampled_from([{}, {"tokens": 300}, {"epochs": 2}, {"tokens": 500, "epochs": 1}]),
    order=st.sampled_from([1, 2]),
    readers=st.integers(0, 4),
)
def test_any_world_and_interruption_gives_the_same_batches(
    worlds: tuple[int, int],
    step: int,
    first: int,
    lengths: tuple[int, int],
    sizes: tuple[int, int],
    limits: dict[str, int],
    order: int,
    readers: int,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        recipe = recipe_in(Path(folder), few=limits, order=order, temperature=None, sequence_length=lengths[0])
        later = Stage(at=first, weights=[1.0, 3.0], sequence_length=lengths[1], global_batch=sizes[1])
        recipe = recipe.model_copy(update={"stages": [later]})
        stages = stages_of(recipe, (first, sizes[0], lengths[0], (2.0, 1.0)), (1, sizes[1], lengths[1], (1.0, 3.0)))
        options: dict[str, Any] = {"stages": stages, "global_batch": sizes[0]}
        whole = globally(recipe, 12, 1, **options)
        state = merged_state(recipe, step, worlds[0], streams=STREAMS, **options)
        assert all(len(str(one)) < 1024 * 2 for one in state.values())
        assert globally(recipe, 12 - step, worlds[1], state, readers=readers, **options) == whole[step:]
    for number, batch in enumerate(whole):
        part = number >= first
        assert len(batch) == sizes[part]
        assert {len(row[0]) for row in batch} == {lengths[part]}
    if "tokens" in limits:
        seen = sum(len(row[0]) for batch in whole for row in batch if row[3] == 1)
        assert seen <= limits["tokens"]


def read_all(recipe: Data, size: int, **options: Any) -> list[list[Batch]]:
    """All batches of each rank, as training ends them: once no rank has more rows."""
    import contextlib

    with contextlib.ExitStack() as stack:
        settings = {"streams": STREAMS, "global_batch": 8, **options}
        opened = [stack.enter_context(loader(recipe, dp_rank=r, dp_size=size, **settings)) for r in range(size)]
        found: list[list[Batch]] = [[] for _ in opened]
        while True:
            for rank, one in enumerate(opened):
                found[rank].append(next(one))
            if not any(made[-1].more for made in found):
                return found


def texts_of(found: list[list[Batch]]) -> Counter[int]:
    """How often each first byte of a target is seen."""
    counts: Counter[int] = Counter()
    for made in found:
        for batch in made:
            labels = batch["labels"]
            counts.update(labels[labels >= 0].tolist())
    return counts


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("order", [1, 2])
def test_each_token_is_a_target_as_often_as_its_source_is_seen(tmp_path: Path, size: int, order: int) -> None:
    texts = [documents(31, "a"), documents(6, "b")]
    paths = [write_jsonl(tmp_path, [part], name) for part, name in zip(texts, "ab", strict=True)]
    recipe = data([Source(path=paths[0], epochs=2), Source(path=paths[1], epochs=3)], order=order)
    counts = texts_of(read_all(recipe, size))
    expected: Counter[int] = Counter()
    for part, times in zip(texts, (2, 3), strict=True):
        for text in part * times:
            expected.update(text.encode())
    counts.pop(SEPARATOR)
    assert counts == expected


def test_the_end_is_the_same_at_every_world_size_and_after_every_step(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, many={"epochs": 1}, few={"tokens": 400, "epochs": 1})
    whole = read_all(recipe, 1)[0]
    assert [batch.more for batch in whole] == [True] * (len(whole) - 1) + [False]
    assert any(-1 in batch.row_sources for batch in whole)
    assert whole[-1].row_sources.count(-1) < 8
    expected = [rows(batch) for batch in whole]
    for size in (2, 8):
        ranks = read_all(recipe, size, readers=size % 3)
        joined = [
            [row for parts in zip(*map(rows, step), strict=True) for row in parts] for step in zip(*ranks, strict=True)
        ]
        assert joined == expected
    for step in range(1, len(whole), 3):
        state = merged_state(recipe, step, 2, streams=STREAMS, global_batch=8)
        assert globally(recipe, len(whole) - step, 4, state, global_batch=8) == expected[step:]


def test_rows_that_cannot_be_filled_up_leave_out_the_last_batch(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps({"text": f"number {n}", "label": n % 2}) + "\n" for n in range(50)))
    from types import SimpleNamespace

    recipe = data([Source(path=str(path), epochs=1)], sequence_length=16)
    model = SimpleNamespace(max_position_embeddings=64, num_labels=2, type_vocab_size=2, pad_token_id=0)
    from shardyard.data.formats import FormatInputs
    from shardyard.data.stream.loader import TrainLoader
    from shardyard.data.tokenizers.tokenizer import load_tokenizer

    inputs = FormatInputs(recipe, load_tokenizer("wordpiece-docs-4k"), model)
    opened = TrainLoader(
        inputs, objective="text_classification", global_batch=8, streams=8, seed=1, dp_rank=0, dp_size=1
    )
    try:
        made = [next(opened) for _ in range(6)]
        assert [batch.more for batch in made] == [True] * 5 + [False]
        with pytest.raises(DataError, match="do not fill another global batch"):
            next(opened)
    finally:
        opened.close()
    few = replace(inputs, data=recipe.model_copy(update={"train": [Source(path=str(path), epochs=1)]}))
    opened = TrainLoader(few, objective="text_classification", global_batch=64, streams=8, seed=1, dp_rank=0, dp_size=1)
    try:
        with pytest.raises(DataError, match=r"lower train\.global_batch"):
            next(opened)
    finally:
        opened.close()


def test_a_stage_whose_sources_end_ends_the_run_though_others_have_no_limit(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, few={"epochs": 1})
    recipe = recipe.model_copy(update={"stages": [Stage(at=2, weights=[0.0, 1.0])]})
    stages = stages_of(recipe, (2, 8, 16, (2.0, 1.0)), (9, 8, 16, (0.0, 1.0)))
    whole = read_all(recipe, 1, stages=stages)[0]
    assert 2 < len(whole) < 11
    assert {source for batch in whole[2:] for source in batch.row_sources} == {1, -1}


@pytest.mark.parametrize("order", [1, 2])
def test_more_passes_on_resuming_go_on_after_those_that_were_made(tmp_path: Path, order: int) -> None:
    path = write_jsonl(tmp_path, [documents(37)])
    once, twice = (data([Source(path=path, epochs=number)], order=order) for number in (1, 2))
    first = read_all(once, 1)[0]
    state = json.loads(json.dumps(first[-1].state))
    with loader(twice, streams=STREAMS, global_batch=8) as opened:
        opened.load_state(state)
        further = [next(opened)]
        while further[-1].more:
            further.append(next(opened))
    counts = texts_of([further])
    counts.pop(SEPARATOR)
    assert counts == Counter(byte for text in documents(37) for byte in text.encode())


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path, few={"tokens": 300})
    state = merged_state(recipe, 2, 1)
    broken = {**state, "1": {**state["1"], "mixture": {"tokens": [0, 0]}}}
    with loader(recipe) as opened, pytest.raises(DataError, match="stream 1 is damaged"):
        opened.load_state(broken)


@pytest.mark.parametrize("packing", ["concat", "best_fit"])
def test_passes_of_a_small_source_end_in_each_way_of_packing(tmp_path: Path, packing: str) -> None:
    path = write_jsonl(tmp_path, [documents(5)])
    recipe = data([Source(path=path, epochs=3)], packing=packing, sequence_length=24)
    counts = texts_of(read_all(recipe, 2))
    counts.pop(SEPARATOR)
    assert counts == Counter(byte for text in documents(5) * 3 for byte in text.encode())


def test_other_recipes_are_drawn_and_kept_as_before(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    state = batches(recipe, 3)[-1].state
    assert all(set(stream) == {"rows", "sources"} for stream in state.values())
