"""The search for ways to train a recipe: answers that are known, and that each one holds as overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

from shardyard.cli.view.plan_search import on_gpus
from shardyard.launch.run.plans import plan_on, question_of, without_weights
from shardyard.planning.forecast.forecast import forecast
from shardyard.planning.forecast.hardware import hardware_of
from shardyard.planning.plan import make_plan
from shardyard.planning.search import text
from shardyard.planning.search.search import (
    SPARE,
    Question,
    Way,
    fewest_devices,
    front,
    holds,
    least,
    proposable,
    ranked_changes,
    sound,
    ways,
)
from shardyard.planning.search.space import changed, checkpointing_modes, memory_settings, override
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe

NOWHERE = Path("/nowhere")


@cache
def loaded_of(name: str, gpu: str, gpus: int, overrides: tuple[str, ...] = ()) -> LoadedRecipe:
    hardware = hardware_of(gpu, gpus, network="400gx8" if gpus > 8 else None)
    return without_weights(load_recipe(name, [*overrides, *on_gpus(hardware)]), NOWHERE)


@cache
def question(name: str, gpu: str, gpus: int, overrides: tuple[str, ...] = ()) -> Question:
    hardware = hardware_of(gpu, gpus, network="400gx8" if gpus > 8 else None)
    loaded = loaded_of(name, gpu, gpus, overrides)
    return question_of(loaded, plan_on(loaded, hardware), hardware)


def longer(asked: Question, length: int) -> Question:
    """The same with one row of `length` tokens a rank, and without activation checkpointing. The model is not measured
    again: its positions are rotated, so that it has the same weights."""
    recipe = changed(asked.recipe, {"train.global_batch": 8, "model.activation_checkpointing": False})
    data = recipe.data.model_copy(update={"sequence_length": length})
    config = {**recipe.model.config, "max_position_embeddings": length}
    model = recipe.model.model_copy(update={"config": config})
    recipe = recipe.model_copy(update={"data": data, "model": model})
    architecture = asked.plan.architecture
    plan = make_plan(recipe, architecture, asked.plan.world)
    return dataclasses.replace(asked, recipe=recipe, plan=plan, measure=lambda _: architecture)


def best(asked: Question, found: Sequence[Way]) -> Way:
    """The fastest way that the rules accept."""
    return front(asked, found)[0]


@pytest.mark.slow
def test_8b_on_8_gpus_needs_no_model_parallelism() -> None:
    asked = question("gpt/llama3-8b", "h100-80gb", 8)
    found = ways(asked)
    fastest = best(asked, found)
    assert fastest.fits
    assert (fastest.plan.mesh.tensor, fastest.plan.mesh.sequence) == (1, 1)
    assert fastest.forecast is not None
    assert fastest.forecast.mfu > 0.4
    assert fastest.headroom_bytes > SPARE * (fastest.plan.world.device_bytes or 0)
    # What the recipe checkpoints for smaller GPUs, this one need not.
    recomputed = fastest.changes.get("model.activation_checkpointing", True)
    assert recomputed in (False, "none", "selective")


@pytest.mark.slow
def test_70b_on_64_gpus_fits_with_zero_3() -> None:
    asked = question("gpt/llama2-70b", "h100-80gb", 64)
    found = ways(asked)
    fastest = best(asked, found)
    assert fastest.fits
    assert fastest.plan.deepspeed["zero_optimization"]["stage"] == 3  # type: ignore[index]
    assert not any(way.fits for way in found if way.changes == {"zero.stage": 0})


@pytest.mark.slow
def test_70b_on_8_small_gpus_does_not_fit_and_says_what_is_missing() -> None:
    asked = question("gpt/llama2-70b", "rtx-4090", 8)
    found = ways(asked)
    assert not proposable(found)
    assert ranked_changes(asked, found) == []
    smallest = least(found)
    assert smallest is not None
    assert smallest.changes["zero.offload_optimizer"] is True
    rows = list(text.missing_rows(asked, found))
    assert [row[0] for row in rows] == ["missing", "fits"]
    assert rows[0][1].endswith("GiB a rank")
    more = fewest_devices(asked)
    assert more is not None
    assert more.gpus > 8
    assert more.fits
    assert f"{more.gpus} of these GPUs" in rows[1][1]


@pytest.mark.slow
def test_no_number_of_devices_holds_a_row_that_is_too_long() -> None:
    asked = longer(question("gpt/llama3-8b", "rtx-4090", 8), 4194304)
    rows = list(text.missing_rows(asked, ways(asked)))
    assert rows[1][1] == "on no number of these"


def test_a_mixture_of_experts_picks_expert_parallelism() -> None:
    asked = question("moe/deepseek-v3", "h100-80gb", 256, ("parallel.expert=1",))
    found = ways(asked)
    assert best(asked, found).plan.mesh.expert > 1
    changes = ranked_changes(asked, found)
    assert changes
    assert all(way.plan.mesh.expert > 1 for way in changes)


def test_a_long_context_picks_sequence_parallelism_or_checkpointing() -> None:
    asked = longer(question("gpt/llama3-8b", "h100-80gb", 8), 65536)
    assert asked.plan.fits is False
    changes = ranked_changes(asked, ways(asked))
    assert changes
    for way in changes:
        assert way.plan.mesh.sequence > 1 or "model.activation_checkpointing" in way.changes


def test_each_proposed_change_holds_as_overrides() -> None:
    """Loaded, planned and forecast again, as a user would do it."""
    asked = question("gpt/llama3-8b", "h100-80gb", 8)
    changes = ranked_changes(asked, ways(asked))
    assert changes
    assert asked.hardware is not None
    for way in changes:
        loaded = loaded_of("gpt/llama3-8b", "h100-80gb", 8, way.overrides)
        plan = make_plan(loaded.recipe, asked.plan.architecture, asked.plan.world)
        assert plan.memory == way.plan.memory
        assert holds(asked, way, loaded.recipe)
        assert not holds(asked, way, asked.recipe)
        assert forecast(loaded.recipe, plan, asked.hardware).tokens_per_second == pytest.approx(way.rate)
        assert plan.tokens_per_step == asked.plan.tokens_per_step
        assert plan.steps == asked.plan.steps


def test_further_changes_are_worth_their_fields() -> None:
    asked = question("gpt/llama3-8b", "h100-80gb", 8)
    assert asked.hardware is not None
    changes = ranked_changes(asked, ways(asked))
    now = forecast(asked.recipe, asked.plan, asked.hardware).tokens_per_second
    rates = [way.rate for way in changes]
    assert rates == sorted(rates, reverse=True)
    assert min(rates) > now
    assert [len(way.changes) for way in changes] == sorted((len(way.changes) for way in changes), reverse=True)


@pytest.mark.slow
def test_the_front_has_nothing_that_another_way_beats() -> None:
    asked = question("gpt/llama2-70b", "h100-80gb", 64)
    found = [*ways(asked), *ways(asked, 32)]
    kept = front(asked, found)
    assert len(kept) > 2
    assert {way.gpus for way in kept} <= {64, 32}
    for way in kept:
        assert way.fits
        assert sound(asked, way)
        assert not any(
            other.rate > 1.03 * way.rate and other.headroom_bytes > 1.1 * way.headroom_bytes and other.gpus <= way.gpus
            for other in proposable(found)
            if sound(asked, other)
        )


def test_without_named_hardware_only_what_does_not_fit_is_changed() -> None:
    asked = question("gpt/llama3-8b", "h100-80gb", 8)
    unnamed = dataclasses.replace(asked, hardware=None)
    assert ranked_changes(unnamed, ways(unnamed)) == []
    less = asked.plan.memory.device_bytes * 3 // 4
    tight = dataclasses.replace(asked.plan, world=dataclasses.replace(asked.plan.world, device_bytes=less))
    unnamed = dataclasses.replace(unnamed, plan=tight)
    changes = ranked_changes(unnamed, ways(unnamed))
    assert changes
    assert all(way.fits and way.forecast is None for way in changes)
    assert len({len(way.changes) for way in changes}) == 1
    name, _, gain = next(text.change_rows(tight, 0.0, changes))
    assert name == "fits 1"
    assert "a rank (−" in gain


def test_text_and_plain_data_of_a_way() -> None:
    asked = question("gpt/llama3-8b", "h100-80gb", 8)
    found = ways(asked)
    fastest = best(asked, found)
    plain = text.as_plain(fastest)
    assert plain["overrides"] == list(fastest.overrides)
    assert plain["tokens_per_second"] == fastest.rate
    (row,) = text.front_rows([fastest])
    assert len(row) == len(text.FRONT_COLUMNS)
    assert row[1] == text.as_options(fastest)
    assert "-s " in row[1]
    assert f"{len(found)} ways" in text.front_note(found)
    (name, change, gain), *_ = text.change_rows(asked.plan, 1000.0, [fastest])
    assert (name, change) == ("faster 1", text.as_options(fastest))
    assert "tokens/s a GPU" in gain


def test_settings_that_are_tried() -> None:
    recipe = question("gpt/llama3-8b", "h100-80gb", 8).recipe
    settings = list(memory_settings(recipe))
    assert {one["zero.stage"] for one in settings} == {0, 1, 2, 3}
    assert not any(one["zero.offload_parameters"] and one["zero.stage"] != 3 for one in settings)
    assert not any(one["zero.offload_optimizer"] and one["zero.stage"] == 0 for one in settings)
    modes = checkpointing_modes(recipe)
    assert modes[0] == recipe.model.activation_checkpointing
    assert len(modes) == len(set(map(str, modes))) >= 2
    assert override("zero.offload_optimizer", value=True) == "zero.offload_optimizer=true"
    assert override("train.micro_batch", None) == "train.micro_batch=null"
    assert override("zero.stage", 3) == "zero.stage=3"
