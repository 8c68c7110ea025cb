"""Tokens, padding and cuts of batches, as metrics count them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.cuts import Cuts
from shardyard.data.stream.loader import TrainLoader
from shardyard.data.stream.use import text_positions
from shardyard.recipe.schema import Source
from support.data_cases import batches, bytes_tokenizer, data, write_jsonl


def cuts_of(folder: Path, texts: list[str], count: int, **fields: Any) -> list[Cuts]:
    recipe = data([Source(path=write_jsonl(folder, [texts]))], sequence_length=8, shuffle_window=1, **fields)
    return [batch.cuts for batch in batches(recipe, count, streams=1, global_batch=1)]


def test_a_row_that_begins_within_a_document_lost_what_came_before(tmp_path: Path) -> None:
    """Positions: |aaa|bbbbbbbbb|cc, so the first row ends after four of b, and the second begins with the next."""
    texts = ["aaa", "b" * 9, "cc"]
    assert cuts_of(tmp_path, texts, 2) == [Cuts(), Cuts(1, 6)]
    assert cuts_of(tmp_path, texts, 4, isolation="rows") == [Cuts(), Cuts(), Cuts(1, 2), Cuts()]


def test_best_fit_cuts_only_what_is_longer_than_a_row(tmp_path: Path) -> None:
    texts = ["aaa", "b" * 9, "cc"]
    recipe = data(
        [Source(path=write_jsonl(tmp_path, [texts]))], sequence_length=8, shuffle_window=3, packing="best_fit"
    )
    made = batches(recipe, 3, streams=1, global_batch=1)
    assert sum((batch.cuts for batch in made), Cuts()) == Cuts(1, 2)
    whole = data(
        [Source(path=write_jsonl(tmp_path, [texts]))], sequence_length=16, shuffle_window=3, packing="best_fit"
    )
    assert [batch.cuts for batch in batches(whole, 2, streams=1, global_batch=1)] == [Cuts(), Cuts()]


@pytest.mark.parametrize("packing", [None, "best_fit"])
def test_an_example_that_does_not_fit_lost_its_end(tmp_path: Path, packing: str | None) -> None:
    talks = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a" * size}] for size in (5, 300)]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    inputs = FormatInputs(
        data([Source(path=str(file))], sequence_length=100, shuffle_window=2, packing=packing), bytes_tokenizer()
    )
    loader = TrainLoader(inputs, objective="instruction", global_batch=2, streams=1, seed=1, dp_rank=0, dp_size=1)
    try:
        found = [next(loader) for _ in range(3)]
    finally:
        loader.close()
    lost = {batch.cuts.tokens for batch in found}
    assert len(lost) == 1
    assert 200 < min(lost) < 300
    assert {batch.cuts.documents for batch in found} == {1}
    tokens, positions = text_positions(found[0].micro_batches, found[0].num_tokens)
    assert positions == 200
    assert 100 < tokens < 150


def test_tokens_are_told_from_masks_labels_or_the_loader() -> None:
    ids, half = torch.ones(2, 6, dtype=torch.long), torch.tensor([[1, 1, 1, 0, 0, 0]] * 2)
    assert text_positions([{"input_ids": ids, "position_ids": ids}], 11) == (11, 12)
    assert text_positions([{"input_ids": ids, "attention_mask": half}] * 2, 99) == (12, 24)
    target = torch.tensor([[5, 5, -100, -100, -100, -100]] * 2)
    seq2seq = {"input_ids": ids, "attention_mask": half, "decoder_input_ids": ids, "labels": target}
    assert text_positions([seq2seq], 99) == (10, 24)
    pair = {f"{side}_{name}": value for side in "ab" for name, value in (("input_ids", ids), ("attention_mask", half))}
    assert text_positions([pair], 99) == (12, 24)
    assert text_positions([{"pixel_values": torch.ones(2, 3, 4, 4)}], 0) == (0, 0)
