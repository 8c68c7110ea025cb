"""Rows of whole documents: none is cut that fits, every token is a target once, rows are full, resuming is exact."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.count import count_rows
from shardyard.data.stream.held_out import held_out_rows
from shardyard.data.stream.packing import IGNORED
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.recipe.schema import Source
from support.data_cases import SEPARATOR, batches, bytes_tokenizer, data, documents, two_separators, write_jsonl
from support.tiny import CONFIGS

LENGTH = 64
TOKENIZERS = [bytes_tokenizer(), two_separators()]


def inputs(folder: Path, texts: list[str], tokenizer: Any = None, **options: Any) -> FormatInputs:
    path = write_jsonl(folder, [texts])
    fields = {"sequence_length": LENGTH, "shuffle_window": 1000, "packing": "best_fit"} | options
    recipe = data([Source(path=path)], validation=[Source(path=path)], **fields)
    return FormatInputs(recipe, tokenizer or bytes_tokenizer())


def made_rows(given: FormatInputs) -> tuple[Any, ...]:
    return held_out_rows(given, 10**6, 0).rows


def parts(row: Any) -> list[tuple[list[int], list[int]]]:
    """Inputs and targets of each document or piece of one in a row."""
    starts = [*np.flatnonzero(row["position_ids"] == 0).tolist(), len(row["input_ids"])]
    return [(row["input_ids"][a:b].tolist(), row["labels"][a:b].tolist()) for a, b in pairwise(starts)]


@pytest.mark.parametrize("tokenizer", TOKENIZERS, ids=["one", "two"])
def test_documents_are_whole_and_longer_ones_are_full_rows_and_a_rest(tmp_path: Path, tokenizer: Any) -> None:
    texts = [*documents(60), "long" * 40, "f" * (LENGTH - 1), "g" * LENGTH, ""]
    found = [part for row in made_rows(inputs(tmp_path, texts, tokenizer)) for part in parts(row)]
    expected = []
    end = SEPARATOR if tokenizer is TOKENIZERS[0] else SEPARATOR + 1
    for text in filter(None, texts):
        whole = [SEPARATOR, *text.encode(), end]
        cuts = range(0, len(whole) - 1, LENGTH)
        expected += [(whole[:-1][cut : cut + LENGTH], whole[1:][cut : cut + LENGTH]) for cut in cuts]
    assert sorted(found) == sorted(expected)


def test_rows_are_full_with_the_lengths_of_real_documents(tmp_path: Path) -> None:
    """Log-normal lengths, as those of web pages: 99.5 % and more of the positions hold tokens."""
    generator = random.Random(0)
    texts = [f"{n} " + "x" * int(generator.lognormvariate(3.2, 1.2)) for n in range(1000)]
    made = made_rows(inputs(tmp_path, texts, sequence_length=128))
    filled = sum(len(row["input_ids"]) for row in made)
    assert filled / (128 * len(made)) >= 0.995
    assert filled == sum(1 + len(text.encode()) for text in texts)


def test_padding_has_no_target_and_is_seen_by_nothing(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [["abc", "de"]])
    for isolate, positions in ((True, [0, 1, 2, 3, 0, 1, 2, *[0] * 9]), (False, list(range(16)))):
        recipe = data([Source(path=path)], shuffle_window=2, packing="best_fit", isolate_documents=isolate)
        (batch,) = batches(recipe, 1, streams=1, global_batch=1)
        order = sorted([b"abc", b"de"], key=lambda text: batch["input_ids"][0].tolist().index(text[0]))
        texts = [token for text in order for token in (SEPARATOR, *text)]
        assert batch["input_ids"][0].tolist() == texts + [SEPARATOR] * 9
        assert batch["labels"][0].tolist() == [*texts[1:], SEPARATOR, *[IGNORED] * 9]
        if order[0] == b"abc" or not isolate:
            assert batch["position_ids"][0].tolist() == positions
        assert batch.num_tokens == 7


def test_rows_come_in_an_order_that_does_not_depend_on_their_lengths(tmp_path: Path) -> None:
    texts = ["a" * 63] * 20 + ["b" * 30] * 20
    rows = [row["input_ids"][1] for row in made_rows(inputs(tmp_path, texts))]
    assert len(rows) == 30
    assert len(set(rows[:10])) == len(set(rows[20:])) == 2


def test_the_rows_of_an_epoch_are_counted_and_hold_each_document_once(tmp_path: Path) -> None:
    given = inputs(tmp_path, documents(50), shuffle_window=8)
    number = count_rows(given, "causal_lm", 7, streams=1)
    made = batches(given.data, 2 * number, streams=1, global_batch=1)
    for epoch in (made[:number], made[number:]):
        seen: Counter[str] = Counter()
        for batch in epoch:
            row = {name: value[0].numpy() for name, value in batch.micro_batches[0].items()}
            seen += Counter(bytes(ids[1:]).decode() for ids, labels in parts(row) if labels != [IGNORED])
        assert seen == Counter(documents(50))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_loss_is_that_of_the_documents_alone(tmp_path: Path, family: str) -> None:
    sizes = {"n_positions": LENGTH} if family == "gpt2" else {"max_position_embeddings": LENGTH}
    config = AutoConfig.for_model(family, vocab_size=257, **{**CONFIGS[family], **sizes})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    texts = documents(40)
    held = held_out_rows(inputs(tmp_path, texts), 10**6, 0)
    objective = make_objective("causal_lm", ObjectiveInputs(sequence_length=LENGTH, tokenizer=bytes_tokenizer()))
    batch = held.pick(range(held.num_rows))
    assert (batch["labels"] == IGNORED).any(), "padding takes part"
    with torch.no_grad():
        packed = objective.measure(model, batch).losses["loss"].item()
        alone = 0.0
        for text in texts:
            ids = torch.tensor([[SEPARATOR, *text.encode(), SEPARATOR]])
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0]
            alone += functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
    assert packed == pytest.approx(alone, rel=1e-6)
