"""Rows of one document each: padded at the end, long documents in pieces, every token a target once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.first_rows import filled_share
from shardyard.data.stream.packing import IGNORED
from shardyard.recipe.schema import Source
from support.data_cases import SEPARATOR, batches, bytes_tokenizer, data, documents, two_separators, write_jsonl

BOS, EOS = 256, 257


def rows_of(
    folder: Path, texts: list[str], count: int, state: dict[str, Any] | None = None, **options: Any
) -> tuple[list[dict[str, list[int]]], dict[str, Any]]:
    """The first rows of one stream, and the data state after them."""
    recipe = data([Source(path=write_jsonl(folder, [texts]))], sequence_length=8, shuffle_window=1, isolation="rows")
    made = batches(recipe, count, state, streams=1, global_batch=1, **options)
    names = ("input_ids", "labels", "position_ids")
    return [{name: batch[name][0].tolist() for name in names} for batch in made], made[-1].state


def test_a_document_is_a_row_and_ends_with_its_separator(tmp_path: Path) -> None:
    (first, second), _ = rows_of(tmp_path, ["abc", "de"], 2)
    pad = SEPARATOR
    assert first["input_ids"] == [pad, *b"abc", pad, pad, pad, pad]
    assert first["labels"] == [*b"abc", pad, *[IGNORED] * 4]
    assert second["input_ids"] == [pad, *b"de", *[pad] * 5]
    assert second["labels"] == [*b"de", pad, *[IGNORED] * 5]
    assert first["position_ids"] == second["position_ids"] == list(range(8))


@pytest.mark.parametrize("text", ["f" * 7, "f" * 8, "f" * 15, "f" * 16, "f" * 17])
@pytest.mark.parametrize("tokenizer", [None, two_separators()], ids=["one", "two"])
def test_a_long_document_is_cut_into_pieces(tmp_path: Path, text: str, tokenizer: Any) -> None:
    head, tail = (BOS, EOS) if tokenizer else (SEPARATOR, SEPARATOR)
    whole = [head, *text.encode(), tail]
    targets = len(whole) - 1
    pieces = -(-targets // 8)
    options = {"tokenizer": tokenizer} if tokenizer else {}
    found, _ = rows_of(tmp_path, [text, "next"], pieces + 1, **options)
    labels = [label for row in found[:pieces] for label in row["labels"] if label != IGNORED]
    assert labels == whole[1:]
    for index, row in enumerate(found[:pieces]):
        filled = sum(label != IGNORED for label in row["labels"])
        assert row["input_ids"][:filled] == whole[:-1][8 * index :][:filled]
    assert found[pieces]["input_ids"][:5] == [head, *b"next"]


def test_a_stream_of_rows_is_restored_exactly(tmp_path: Path) -> None:
    """The state after each batch leads to the batches that follow it."""
    texts = documents(30)
    whole, _ = rows_of(tmp_path, texts, 60)
    for done in (1, 7, 23):
        _, state = rows_of(tmp_path, texts, done)
        assert rows_of(tmp_path, texts, 60 - done, state)[0] == whole[done:]


def test_how_full_rows_are_is_known_from_the_first_ones_and_of_each_batch(tmp_path: Path) -> None:
    """Documents of three letters with their separator fill half of rows of eight, and those of seven all."""
    short, long = (
        Source(path=write_jsonl(tmp_path, [texts], name), weight=weight)
        for name, texts, weight in (("short", ["abc"] * 20, 0.25), ("long", ["g" * 7] * 20, 0.75))
    )
    recipe = data([short, long], sequence_length=8, shuffle_window=1, isolation="rows")
    assert filled_share(FormatInputs(recipe, bytes_tokenizer()), "causal_lm") == 0.25 * 0.5 + 0.75
    elsewhere = recipe.model_copy(update={"train": [Source(path="https://host.invalid/x.jsonl")]})
    assert filled_share(FormatInputs(elsewhere, bytes_tokenizer()), "causal_lm") is None
    only_short = recipe.model_copy(update={"train": [short]})
    assert [batch.num_tokens for batch in batches(only_short, 2, None, streams=1, global_batch=4)] == [16, 16]
