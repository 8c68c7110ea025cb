"""Whether checkpoints are written beside training: as the recipe says, or where there is room for the copy."""

from __future__ import annotations

import pytest

from shardyard.errors import RecipeError
from shardyard.planning import saving
from shardyard.planning.plan import RunPlan, World, make_plan
from shardyard.planning.plan_text import rows
from shardyard.planning.saving import background_of, copy_bytes
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.schema import Recipe
from support.measured import LLAMA3_8B as SIZES

GIB = 1 << 30


@pytest.fixture(autouse=True)
def by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "BY_DEFAULT", True)


def test_where_the_copy_fits_it_is_the_default() -> None:
    recipe = load_recipe("gpt/llama3-8b", ["zero.stage=3"]).recipe
    plan = make_plan(recipe, SIZES, World(size=16, gpu=False, device_bytes=400 * GIB))
    needed = plan.memory.device_bytes + plan.memory.offloaded_bytes + copy_bytes(recipe, plan.memory)
    assert plan.background
    assert background_of(recipe, plan.memory, needed, gpu=False)[0]
    tight, why = background_of(recipe, plan.memory, needed - 1, gpu=False)
    assert not tight
    assert why.startswith("a copy of ")
    # The memory of a GPU says nothing of its host, which the ranks look at.
    assert background_of(recipe, plan.memory, needed - 1, gpu=True)[0]
    told = {what: (value, reason) for what, value, reason in rows(plan)}
    assert told["written"][0] == "beside training"
    assert told["written"][1].startswith("a step waits for a copy of a rank's states alone, ")
    crowded = make_plan(recipe, SIZES, World(size=16, gpu=False, device_bytes=plan.memory.device_bytes + GIB))
    assert [value for what, value, _ in rows(crowded) if what == "written"] == ["between two steps"]


@pytest.mark.parametrize("given", [True, False])
def test_the_recipe_decides(given: bool) -> None:
    plan = planned(given, World(size=16, gpu=False, device_bytes=400 * GIB))
    assert plan.background is given
    assert plan.reasons["background"].startswith("given by checkpoint.background")


def planned(given: bool | None, world: World) -> RunPlan:
    more = [] if given is None else [f"checkpoint.background={str(given).lower()}"]
    return make_plan(load_recipe("gpt/llama3-8b", ["zero.stage=3", *more]).recipe, SIZES, world)


def test_what_is_asked_for_and_has_no_room_is_refused() -> None:
    plan = planned(False, World(size=16, gpu=False, device_bytes=400 * GIB))
    needed = plan.memory.device_bytes + plan.memory.offloaded_bytes + copy_bytes(plan_recipe(), plan.memory)
    assert planned(True, World(size=16, gpu=False, device_bytes=needed)).background
    with pytest.raises(RecipeError) as raised:
        planned(True, World(size=16, gpu=False, device_bytes=needed - 1))
    (problem,) = raised.value.problems
    assert problem.path == "checkpoint.background"
    assert problem.message.startswith("a copy of ")
    assert "set it to false" in problem.message
    # What fits without a copy is planned so by itself, with the reason; what never fits is refused for that.
    assert not planned(None, World(size=16, gpu=False, device_bytes=needed - 1)).background
    assert planned(True, World(size=16, gpu=False, device_bytes=1)).fits is False


def test_copies_of_all_gpus_of_the_only_host_have_to_fit_it() -> None:
    copies = 8 * copy_bytes(plan_recipe(), planned(None, World(size=8, gpu=True)).memory)
    assert planned(True, World(size=8, gpu=True, host_bytes=copies)).background
    with pytest.raises(RecipeError, match="of this host, which has"):
        planned(True, World(size=8, gpu=True, host_bytes=copies - 1))
    tight = planned(None, World(size=8, gpu=True, host_bytes=copies - 1))
    assert not tight.background
    assert tight.reasons["background"].startswith("copies of 8 × ")


def plan_recipe() -> Recipe:
    return load_recipe("gpt/llama3-8b", ["zero.stage=3"]).recipe


def test_where_nothing_is_said_and_there_is_room_the_reason_names_the_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "BY_DEFAULT", False)
    plan = planned(None, World(size=16, gpu=False, device_bytes=400 * GIB))
    assert not plan.background
    assert plan.reasons["background"].startswith("checkpoint.background is not set; with true a step waits for a copy")


def test_what_is_offloaded_to_files_is_not_copied() -> None:
    zero = ["zero.stage=3", "zero.offload_optimizer=nvme", "zero.nvme_path=/disk", "train.precision=bf16"]
    recipe = load_recipe("gpt/llama3-8b", zero).recipe
    plan = make_plan(recipe, SIZES, World(size=16, gpu=True))
    assert not plan.background
    assert "zero.offload_optimizer nvme keeps out of it" in plan.reasons["background"]
