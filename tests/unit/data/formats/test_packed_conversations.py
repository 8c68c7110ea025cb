"""Packed conversations: whole, isolated, resumable, and with the loss and gradients of unpacked ones."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shardyard.data.formats import FormatInputs
from shardyard.data.stream.count import count_rows
from shardyard.data.stream.held_out import held_out_rows
from shardyard.data.stream.loader import TrainLoader
from shardyard.objectives.answers import Answers
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.data import data_rules
from shardyard.recipe.schema import Source
from support.data_cases import bytes_tokenizer, data
from support.tiny import CONFIGS

LENGTH = 128


def conversations(count: int) -> list[list[dict[str, str]]]:
    generator = random.Random(3)
    return [
        [
            {"role": "user", "content": f"question {n}" + "?" * generator.randint(0, 20)},
            {"role": "assistant", "content": "a" * generator.randint(1, 30)},
        ]
        for n in range(count)
    ]


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "talk.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in conversations(40)))
    return str(file)


def inputs(path: str, **options: Any) -> FormatInputs:
    fields = {"sequence_length": LENGTH, "shuffle_window": 16, "packing": True} | options
    recipe = data([Source(path=path)], validation=[Source(path=path)], **fields)
    return FormatInputs(recipe, bytes_tokenizer())


def rows(path: str, count: int, state: Any = None, **options: Any) -> tuple[list[dict[str, list[int]]], Any]:
    loader = TrainLoader(
        inputs(path, **options), objective="instruction", global_batch=1, streams=1, seed=7, dp_rank=0, dp_size=1
    )
    try:
        if state is not None:
            loader.load_state(json.loads(json.dumps(state)))
        made = [next(loader) for _ in range(count)]
        found = [{name: value[0].tolist() for name, value in batch.micro_batches[0].items()} for batch in made]
        return found, made[-1].state
    finally:
        loader.close()


def test_each_conversation_once_and_whole(path: str) -> None:
    held = held_out_rows(inputs(path), 10**4, 0, objective="instruction")
    alone = held_out_rows(inputs(path, packing=False), 10**4, 0, objective="instruction")
    assert held.num_rows < 0.6 * alone.num_rows
    found = []
    for row in held.rows:
        starts = [*np.flatnonzero(row["position_ids"] == 0), len(row["input_ids"])]
        found += [(row["input_ids"][a:b].tolist(), row["labels"][a:b].tolist()) for a, b in pairwise(starts)]
        assert len(row["input_ids"]) <= LENGTH
    assert sorted(found) == sorted((row["input_ids"].tolist(), row["labels"].tolist()) for row in alone.rows)


def test_a_stream_continues_where_it_stopped(path: str) -> None:
    whole, _ = rows(path, 20)
    for stop in (1, 3, 7):
        first, state = rows(path, stop)
        rest, _ = rows(path, 20 - stop, state)
        assert first + rest == whole


def test_the_rows_of_a_pass_are_counted_by_stream(path: str) -> None:
    one, four = (count_rows(inputs(path), "instruction", 7, streams=streams) for streams in (1, 4))
    assert one == held_out_rows(inputs(path), 10**4, 7, objective="instruction").num_rows
    assert four >= one


def test_a_longer_conversation_has_a_row_of_its_own(path: str) -> None:
    held = held_out_rows(inputs(path, sequence_length=48), 10**4, 0, objective="instruction")
    assert held.format.num_cut > 0
    longest = [row for row in held.rows if len(row["input_ids"]) == 48]
    assert any((row["position_ids"] == np.arange(48)).all() for row in longest)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_loss_and_gradients_are_those_of_unpacked_rows(path: str, family: str) -> None:
    config = AutoConfig.for_model(family, vocab_size=257, **{**CONFIGS[family], **_positions(family)})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    results = []
    for packing in (True, False):
        given = inputs(path, packing=packing)
        held = held_out_rows(given, 10**4, 0, objective="instruction")
        model.zero_grad()
        measured = Answers(packing=packing).measure(model, held.pick(range(held.num_rows)))
        measured.losses["loss"].backward()
        gradient = torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])
        results.append((measured.losses["loss"].item(), measured.observed["correct"].item(), gradient))
    (packed, hits, gradient), (alone, hits_alone, gradient_alone) = results
    assert packed == pytest.approx(alone, rel=1e-5)
    assert hits == hits_alone
    assert (gradient - gradient_alone).norm() <= 1e-5 * gradient_alone.norm()


def _positions(family: str) -> dict[str, int]:
    return {"n_positions": LENGTH} if family == "gpt2" else {"max_position_embeddings": LENGTH}


@pytest.mark.parametrize(
    ("objective", "isolate", "packing", "message"),
    [
        ("causal_lm", True, True, "is concat or best_fit for the documents of causal_lm"),
        ("instruction", False, "best_fit", "keeps the conversations of a row apart"),
        ("instruction", True, "concat", "concat would cut conversations"),
        ("preference", True, "best_fit", "preference has other rows"),
    ],
)
def test_packing_is_refused_where_it_cannot_be(
    path: str, objective: str, isolate: bool, packing: Any, message: str
) -> None:
    fields = {"sequence_length": 32, "train": [{"path": path, "holdout": 0.1}], "packing": packing}
    recipe = parse_recipe(
        {
            "name": "p",
            "objective": objective,
            "model": {"family": "gpt2"},
            "data": {**fields, "isolate_documents": isolate},
            "train": {"steps": 2, "global_batch": 2},
            "optimizer": {"name": "adamw", "lr": 1e-3},
        }
    )
    found = dict(data_rules(recipe))
    assert message in found[("data", "packing")]
