"""The forecast of every shipped recipe, by the sizes that come with them."""

from __future__ import annotations

import pytest

from shardyard.launch.run.architecture_cache import shipped_size
from shardyard.launch.run.initial import for_planning
from shardyard.planning.forecast.forecast import Forecast, forecast, world_on
from shardyard.planning.forecast.hardware import Hardware, hardware_of
from shardyard.planning.forecast.text import forecast_rows
from shardyard.planning.plan import make_plan
from shardyard.recipe.catalog.shipped import shipped_recipes
from shardyard.recipe.schema import Recipe
from support.measured import NO_RUNS, loaded

# Those that go on from another run have the sizes of its files.
_LARGE = ("finetune/llama3-8b-sft", "finetune/llama3-8b-lora")
NAMES = [
    shipped.name
    for shipped in shipped_recipes()
    if not shipped.name.startswith(("finetune/", "multimodal/")) or shipped.name in _LARGE
]


def on(name: str, hardware: Hardware, **sections: dict[str, object]) -> Forecast | None:
    """The forecast of a shipped recipe; None if its sizes do not come with it."""
    recipe = for_planning(loaded(name), NO_RUNS)
    size = shipped_size(recipe)
    if size is None:
        return None
    fields = recipe.model_dump()
    for section, values in sections.items():
        fields[section] |= values
    recipe = Recipe.model_validate(fields)
    plan = make_plan(recipe, size, world_on(hardware), rows=100_000)
    found = forecast(recipe, plan, hardware)
    assert all(why for _, _, why in forecast_rows(found, plan))
    return found


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_forecast(name: str) -> None:
    workers = loaded(name).cluster.workers
    found = on(name, hardware_of("h100-80gb", workers, network="400gx8"))
    assert found is not None, "its sizes depend on files of the machine"
    # Small models on large GPUs wait for the CPU; nothing reaches the peak.
    assert 1e-6 < found.mfu < 0.7
    assert 0 < found.step.seconds < 3600


def test_deepseek_v3_without_expert_parallelism_moves_terabytes_in_each_micro_batch() -> None:
    """Two gathers and a reduction of 671B weights in 16 bits: 4 TB for the 4,096 tokens of a GPU."""
    hardware = hardware_of("h100-80gb", 512, network="400gx8")
    one = {"micro_batch": 1}
    found = on("moe/deepseek-v3", hardware, zero={"communication_data_type": "bf16"}, parallel={"expert": 1}, train=one)
    assert found is not None
    rounds = found.transfers[0].per_step
    assert found.sent_bytes("data") / rounds == pytest.approx(4.0e12, rel=0.02)
    assert found.step.exposed > 0.5 * found.step.seconds
    spread = on("moe/deepseek-v3", hardware, parallel={"expert": 64}, train=one)
    assert spread is not None
    assert spread.sent_bytes("data") < 0.1 * found.sent_bytes("data")
    assert spread.tokens_per_second > 1.5 * found.tokens_per_second
