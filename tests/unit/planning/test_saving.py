"""Whether checkpoints are written beside training: as the recipe says, or where there is room for the copy."""

from __future__ import annotations

import pytest

from shardyard.planning import saving
from shardyard.planning.plan import World, make_plan
from shardyard.planning.plan_text import rows
from shardyard.planning.saving import background_of, copy_bytes
from shardyard.recipe.loading.load import load_recipe
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
    recipe = load_recipe("gpt/llama3-8b", [f"checkpoint.background={str(given).lower()}"]).recipe
    plan = make_plan(recipe, SIZES, World(size=16, gpu=False, device_bytes=1))
    assert plan.background is given
    assert plan.reasons["background"].startswith("given by checkpoint.background")


def test_what_is_offloaded_to_files_is_not_copied() -> None:
    zero = ["zero.stage=3", "zero.offload_optimizer=nvme", "zero.nvme_path=/disk", "train.precision=bf16"]
    recipe = load_recipe("gpt/llama3-8b", zero).recipe
    plan = make_plan(recipe, SIZES, World(size=16, gpu=True))
    assert not plan.background
    assert "zero.offload_optimizer nvme keeps out of it" in plan.reasons["background"]
