"""Activation checkpointing in a plan: chosen where nothing else fits, explained, and counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from shardyard.planning.architecture import LayerShape
from shardyard.planning.memory import estimate_memory
from shardyard.planning.plan import World, fixed, make_plan
from shardyard.planning.plan_text import rows as plan_rows
from shardyard.planning.recomputation import Recomputed, cheapest_first, with_recomputed
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import data_mesh
from shardyard.recipe.schema import Recipe
from support.measured import GPT2


def recipe_of(**sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "again",
        "model": {"family": "gpt2"},
        "data": {"sequence_length": 1024, "train": [{"source": "python-docs"}]},
        "train": {"global_batch": 64, "steps": 100, "precision": "bf16"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }
    return parse_recipe(
        {
            name: {**base.get(name, {}), **sections.get(name, {})} if isinstance(value, dict) else value
            for name, value in base.items()
        }
    )


def test_a_plan_computes_activations_again_only_where_nothing_else_fits() -> None:
    """The cheapest way that makes one row fit; a recipe that names one keeps it."""
    recipe = recipe_of(model={"logits_chunk": 64}, train={"micro_batch": 4})
    needed = {
        mode: estimate_memory(with_recomputed(recipe, mode), GPT2, data_mesh(1), micro_batch=4).device_bytes
        for mode in (Recomputed("none"), *cheapest_first(recipe))
    }
    assert sorted(needed.values(), reverse=True)[0] == needed[Recomputed("none")]
    have = needed[Recomputed("none")] - 1
    plan = make_plan(recipe, GPT2, World(1, gpu=False, device_bytes=have))
    assert plan.recomputed == Recomputed("selective")
    assert plan.fits
    assert "without it not even a micro-batch of 4 fits" in plan.reasons["recomputed"]
    assert fixed(recipe, plan).model.activation_checkpointing == "selective"
    shown = {name: (value, why) for name, value, why in plan_rows(plan)}
    assert shown["recomputed"][0] == "selective"
    tight = make_plan(recipe, GPT2, World(1, gpu=False, device_bytes=needed[Recomputed("full")]))
    assert tight.recomputed == Recomputed("full")
    assert "100% of the layers are computed again: 207.9M FLOPs a token" in tight.reasons["recomputed"]
    roomy = make_plan(recipe, GPT2, World(1, gpu=False, device_bytes=have + 1))
    assert roomy.recomputed == Recomputed("none")
    assert "recomputed" not in {name for name, _, _ in plan_rows(roomy)}
    never = recipe_of(model={"logits_chunk": 64, "activation_checkpointing": False}, train={"micro_batch": 4})
    assert not make_plan(never, GPT2, World(1, gpu=False, device_bytes=have)).fits


def test_checkpoints_in_host_memory_count_for_the_host() -> None:
    settings = {"activation_checkpointing": "full"}
    held, moved = (
        estimate_memory(recipe_of(model=settings | {"offload_activations": away}), GPT2, data_mesh(1), micro_batch=2)
        for away in (False, True)
    )
    inputs = 2 * 2 * 1024 * 768
    assert moved.offloaded_bytes == 10 * inputs, "of twelve layers, two stay on the device"
    assert held.activations_bytes - moved.activations_bytes == 10 * inputs


def test_blocks_after_the_last_checkpointed_one_are_gone_when_it_is_recomputed() -> None:
    """Of four blocks with an interval of 2, one whole one and one that is recomputed exist then."""
    four = replace(GPT2, layers=4)
    recipe = recipe_of(model={"logits_chunk": 1})
    other = recipe_of(model={"logits_chunk": 1, "activation_checkpointing_interval": 2})
    plain, full, second = (
        estimate_memory(one, four, data_mesh(1), micro_batch=8).activations_bytes
        for one in (recipe, with_recomputed(recipe, Recomputed("full")), with_recomputed(other, Recomputed("full", 2)))
    )
    block = 34 * four.hidden_size * 8 * 1024
    assert second - full == pytest.approx(block, rel=0.1)
    assert plain > second + block


def test_feed_forward_blocks_in_parts_keep_no_inner_activations() -> None:
    shape = LayerShape(
        768, 3072, gated=False, rms_norm=False, rotary=False, experts=0, experts_per_token=0, inputs=(1, 1)
    )
    model = replace(GPT2, layer=shape)

    def activations(tokens: int) -> int:
        recipe = recipe_of(model={"mlp_chunk": tokens})
        return estimate_memory(recipe, model, data_mesh(1), micro_batch=4).activations_bytes

    inner = 2 * 2 * 3072
    assert activations(4096) == activations(0), "all tokens of a micro-batch are one part"
    spared = activations(0) - activations(1024)
    assert spared == pytest.approx(inner * GPT2.layers * 4096, rel=0.1)
    assert activations(2048) >= activations(1024)
