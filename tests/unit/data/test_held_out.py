"""Held-out rows: fixed, disjoint from training, each document once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.held_out import HeldOut, held_out_rows, validation_sources
from shardyard.data.stream.packing import IGNORED
from shardyard.errors import DataError
from shardyard.recipe.schema import Data, Source
from support.data_cases import SEPARATOR, batches, bytes_tokenizer, data, documents, split_documents, write_jsonl


def texts_of(held: HeldOut) -> list[str]:
    """Whole documents of all rows, from the inputs that have a target and the last target."""
    tokens: list[int] = []
    for inputs, labels in zip(held["input_ids"].tolist(), held["labels"].tolist(), strict=True):
        valid = [n for n, label in enumerate(labels) if label != IGNORED]
        tokens = [*(tokens or inputs[:1]), *(labels[n] for n in valid)]
    return split_documents(tokens)


def test_each_document_once_and_fewer_rows_where_the_data_ends(tmp_path: Path) -> None:
    texts = documents(23)
    recipe = data(
        [Source(path="unused.jsonl")], validation=[Source(path=write_jsonl(tmp_path, [texts]), split="train")]
    )
    held = held_out_rows(FormatInputs(recipe, bytes_tokenizer()), 1000, seed=3)
    assert sorted(texts_of(held)) == sorted(texts)
    tokens = sum(len(text.encode()) + 1 for text in texts)
    assert int((held["labels"] != IGNORED).sum()) == tokens - 1
    assert held.num_rows == -(-(tokens - 1) // 16) == held["input_ids"].shape[0]
    assert "1000 were asked for; the data ends" in held.describe()
    padding = held["labels"] == IGNORED
    assert torch.all(held["input_ids"][padding] == SEPARATOR)
    fixed = held_out_rows(FormatInputs(recipe, bytes_tokenizer()), 4, seed=3)
    assert torch.equal(fixed["input_ids"], held["input_ids"][:4])
    assert torch.equal(fixed["labels"], held["labels"][:4])
    assert (fixed.name, fixed.num_rows, fixed.num_requested) == ("validation", 4, 4)
    assert fixed.describe() == f"4 rows of {recipe.validation[0].path}"


def test_a_mixture_goes_on_where_one_source_ends(tmp_path: Path) -> None:
    short = Source(path=write_jsonl(tmp_path, [documents(3, "s")], "short"), split="train", weight=5.0)
    long = Source(path=write_jsonl(tmp_path, [documents(60, "l")], "long"), split="train")
    held = held_out_rows(FormatInputs(data([short], validation=[short, long]), bytes_tokenizer()), 40, seed=0)
    assert held.num_rows == 40
    assert 1 <= held.row_sources.count(0) <= 5
    assert set(held.row_sources[-20:]) == {1}


def test_holdout_of_the_training_sources_is_the_default(tmp_path: Path) -> None:
    texts = documents(300)
    source = Source(path=write_jsonl(tmp_path, [texts]), holdout=0.2)
    recipe = data([source, Source(path="kept-whole.jsonl")])
    assert validation_sources(recipe) == [source]
    held = set(texts_of(held_out_rows(FormatInputs(recipe, bytes_tokenizer()), 10**4, seed=1)))
    trained = data([source], sequence_length=64)
    stream = [
        token for batch in batches(trained, 200, streams=1) for row in batch["input_ids"].tolist() for token in row
    ]
    seen = set(split_documents(stream)[:-1])
    assert held | seen == set(texts)
    assert not held & seen


def test_embedded_sources_hold_out_their_validation_split() -> None:
    recipe = data([Source(source="python-docs", weight=0.7), Source(path="a.jsonl")])
    (found,) = validation_sources(recipe)
    assert (found.source, found.split, found.weight) == ("python-docs", "validation", 0.7)


def test_explicit_validation_wins() -> None:
    recipe = data([Source(source="python-docs")], validation=[Source(path="v.jsonl")])
    assert validation_sources(recipe) == [Source(path="v.jsonl")]


def test_nothing_held_out_is_said() -> None:
    recipe: Data = data([Source(path="a.jsonl")])
    assert validation_sources(recipe) == []
    with pytest.raises(DataError, match=r"nothing is held out: give data\.validation, or a `holdout`.*a\.jsonl"):
        held_out_rows(FormatInputs(recipe, bytes_tokenizer()), 4, seed=0)
