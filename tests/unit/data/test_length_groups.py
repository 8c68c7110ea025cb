"""Batches of rows of like length: little padding, each example once, exact whoever reads and whenever it stopped."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shardyard.data.formats import FormatInputs
from shardyard.data.media.audio import sound_bytes
from shardyard.data.stream.length_groups import ByLength, size_of
from shardyard.data.stream.loader import Batch, TrainLoader
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.data import data_rules
from shardyard.recipe.schema import Source
from support.data_cases import bytes_tokenizer, data


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Questions of log-normal lengths; some have an empty answer and are left out."""
    generator = random.Random(1)
    talks = [
        [
            {"role": "user", "content": f"{n}" + "?" * int(generator.lognormvariate(3, 1))},
            {"role": "assistant", "content": "" if n % 40 == 4 else f"answer {n}"},
        ]
        for n in range(512)
    ]
    file = tmp_path_factory.mktemp("talks") / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return str(file)


def made(
    path: str, steps: int, state: Any = None, *, rank: int = 0, ranks: int = 1, streams: int = 4, **fields: Any
) -> list[Batch]:
    given = {"sequence_length": 600, "shuffle_window": 128, "group_by_length": True} | fields
    inputs = FormatInputs(data([Source(path=path)], **given), bytes_tokenizer())
    loader = TrainLoader(
        inputs, objective="instruction", global_batch=8, streams=streams, seed=3, dp_rank=rank, dp_size=ranks
    )
    try:
        if state is not None:
            loader.load_state(json.loads(json.dumps(state)))
        return [next(loader) for _ in range(steps)]
    finally:
        loader.close()


def texts(batch: Batch) -> list[str]:
    rows = zip(batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True)
    return [bytes(token for token, seen in zip(*row, strict=True) if seen and token < 256).decode() for row in rows]


def global_batches(path: str, steps: int, ranks: int, state: Any = None, **options: Any) -> list[list[str]]:
    parts = [made(path, steps, state, rank=rank, ranks=ranks, **options) for rank in range(ranks)]
    return [[text for row in zip(*map(texts, step), strict=True) for text in row] for step in zip(*parts, strict=True)]


def padding(batches: list[list[str]]) -> float:
    """Share of the positions that are padding if each global batch is padded to its longest row."""
    lengths = [[len(text) for text in batch] for batch in batches]
    return 1 - sum(map(sum, lengths)) / sum(max(batch) * len(batch) for batch in lengths)


@pytest.mark.parametrize("order", [1, 2])
def test_most_of_the_padding_is_saved_and_nothing_else_changes(path: str, order: int) -> None:
    apart = global_batches(path, 62, 1, group_by_length=False, order=order)
    grouped = global_batches(path, 64, 1, order=order)
    assert padding(apart) > 0.5
    assert padding(grouped[:60]) < 0.4 * padding(apart)
    epoch = {text for batch in grouped for text in batch}
    assert epoch >= {text for batch in apart for text in batch}, "an epoch holds each example"


def test_long_and_short_batches_come_in_turn(path: str) -> None:
    longest = [max(map(len, batch)) for batch in global_batches(path, 30, 1)]
    ranks = np.argsort(np.argsort(longest))
    assert abs(np.corrcoef(ranks[:-1], ranks[1:])[0, 1]) < 0.5, "the next batch is not of like length"


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(
    step=st.integers(1, 40),
    worlds=st.sampled_from([(1, 2), (2, 4), (4, 1)]),
    streams=st.sampled_from([4, 8, 16]),
    order=st.sampled_from([1, 2]),
)
def test_the_order_is_exact(path: str, step: int, worlds: tuple[int, int], streams: int, order: int) -> None:
    before, after = worlds
    options: dict[str, Any] = {"streams": streams, "order": order, "shuffle_window": 16}
    undisturbed = global_batches(path, step + 3, 1, **options)
    state: dict[str, Any] = {}
    for rank in range(before):
        state |= made(path, step, rank=rank, ranks=before, **options)[-1].state
    assert global_batches(path, 3, after, state, **options) == undisturbed[step:]


@given(sizes=st.lists(st.integers(0, 9), max_size=50), done=st.integers(0, 10**6), group=st.integers(1, 8))
def test_each_piece_of_a_window_comes_once(sizes: list[int], done: int, group: int) -> None:
    order = ByLength(sizes, group, (0, 0))
    assert sorted(order.next(row) for row in range(done, done + len(sizes))) == list(range(len(sizes)))


def test_states_of_other_runs_stay_as_they_were(path: str) -> None:
    (source,) = made(path, 2, group_by_length=False)[-1].state["0"]["sources"]
    assert set(source) == {"epoch", "window", "cursor", "document", "offset"}
    grouped = made(path, 50, shuffle_window=64)[-1].state["0"]["sources"][0]
    assert len(json.dumps(grouped)) < 1000
    assert 0 < grouped["since"] <= 64
    assert grouped["odd"], "conversations were left out"


def test_lengths_are_those_of_texts_and_files(tmp_path: Path) -> None:
    assert size_of({"source": "abc", "target": ["de", {"f": "g"}], "label": 7, "image": b"1234"}) == 6
    file = tmp_path / "x.wav"
    file.write_bytes(b"12345")
    assert [sound_bytes(value) for value in (b"123", {"bytes": b"12", "path": None}, str(file), None)] == [3, 2, 5, 0]
    assert sound_bytes({"bytes": None, "path": str(tmp_path / "none.wav")}) == 0


@pytest.mark.parametrize(
    ("objective", "family", "message"),
    [
        ("causal_lm", "gpt2", "packed rows have next to none"),
        ("image_classification", "vit", "the images of image_classification are of one size"),
    ],
)
def test_it_is_refused_where_there_is_nothing_to_save(path: str, objective: str, family: str, message: str) -> None:
    recipe = parse_recipe(
        {
            "name": "g",
            "objective": objective,
            "model": {"family": family, "labels": ["a", "b"]} if family == "vit" else {"family": family},
            "data": {"sequence_length": 32, "train": [{"path": path, "holdout": 0.1}], "group_by_length": True},
            "train": {"steps": 2, "global_batch": 2},
            "optimizer": {"name": "adamw", "lr": 1e-3},
        }
    )
    assert message in dict(data_rules(recipe))[("data", "group_by_length")]
