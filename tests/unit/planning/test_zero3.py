"""What a step of ZeRO-3 holds beside a rank's own shards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from shardyard.planning.architecture import Architecture
from shardyard.planning.zero3 import gathered_parameters, gradient_bytes
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import data_mesh
from shardyard.recipe.schema import Recipe
from support.measured import tiny_architecture

MILLION = 1_000_000


def _recipe(**zero: object) -> Recipe:
    return parse_recipe(
        {
            "name": "wide",
            "model": {"family": "gpt2"},
            "objective": "causal_lm",
            "tokenizer": "bytes",
            "data": {"sequence_length": 32, "train": [{"path": "x.jsonl"}]},
            "train": {"steps": 1, "global_batch": 8, "precision": "bf16"},
            "optimizer": {"lr": 1e-3},
            "zero": {"stage": 3, **zero},
        }
    )


def _wide(parameters: int, block: int, tensor: int) -> Architecture:
    return replace(
        tiny_architecture("gpt2"),
        parameters=parameters * MILLION,
        largest_block_parameters=block * MILLION,
        largest_tensor_parameters=tensor * MILLION,
    )


@pytest.mark.parametrize(
    ("model", "gathered"),
    [
        (_wide(100, 10, 4), 100),  # a small model stays gathered
        (_wide(7000, 200, 525), 1000 + 525),  # the table of the vocabulary, beside all that is gathered ahead
        (_wide(70_000, 1800, 600), 1000 + 600),
        (_wide(700_000, 11_000, 7500), 1000 + 7500),  # a stack of experts is gathered as a whole
    ],
)
def test_what_is_gathered_at_once(model: Architecture, gathered: int) -> None:
    assert gathered_parameters(_recipe(), model, data_mesh(8)) == gathered * MILLION


def test_fewer_live_parameters_take_less() -> None:
    recipe = _recipe(live_parameters=100 * MILLION)
    assert gathered_parameters(recipe, _wide(7000, 200, 50), data_mesh(8)) == 150 * MILLION


def test_experts_of_other_ranks_are_not_gathered() -> None:
    mesh = replace(data_mesh(8), axes=(("expert_data", 2), ("expert", 4)))
    model = replace(_wide(70_000, 900, 600), expert_parameters=64_000 * MILLION, block_experts=800 * MILLION)
    assert gathered_parameters(_recipe(live_parameters=0), model, mesh) == (40 + 150) * MILLION
    # With as many ranks as an expert's group has, nobody else has a part of them.
    alone = replace(data_mesh(8), axes=(("expert", 8),))
    assert gathered_parameters(_recipe(), model, alone) == 1_000 * MILLION + model.vocabulary * model.hidden_size


def test_a_gradient_larger_than_the_bucket_travels_alone() -> None:
    bucket = 4 * 40 * MILLION
    assert gradient_bytes(_recipe(), _wide(7000, 200, 20), data_mesh(8)) == (bucket, bucket)
    # In bf16, and the copy that is sent in fp32.
    assert gradient_bytes(_recipe(), _wide(7000, 200, 50), data_mesh(8)) == (bucket, (2 + 4) * 50 * MILLION)
