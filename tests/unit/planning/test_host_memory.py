"""Host memory that schedulers are asked for: weights as they are loaded, whole or a block at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from shardyard.planning.architecture import Architecture
from shardyard.planning.host_memory import GPU_RANK_BYTES, SMALLEST_BLOCK_BYTES, host_memory, loading_bytes, read_whole
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.loading.load import load_recipe
from support.measured import LLAMA3_8B as SIZES

TABLE = 128_256 * 4096


def loading(*overrides: str, recipe: str = "finetune/llama3-8b-sft", sizes: Architecture = SIZES) -> tuple[int, str]:
    found = load_recipe(recipe, list(overrides)).recipe
    return loading_bytes(found, make_plan(found, sizes, World(size=16, gpu=True)))


def test_a_rank_holds_a_block_of_a_model_that_it_reads_in_slices() -> None:
    assert loading() == (4 * TABLE, "the weights of a block")
    small = replace(SIZES, vocabulary=100, largest_block_parameters=1000)
    assert loading(sizes=small)[0] == SMALLEST_BLOCK_BYTES
    assert loading(sizes=replace(SIZES, pretrained_vocabulary=1000))[0] == 12 * TABLE


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_below_stage_3_each_rank_holds_the_model_in_the_precision_that_it_reads(stage: int) -> None:
    half = loading(f"zero.stage={stage}")
    assert half == (2 * SIZES.parameters, "all weights in 16 bits")
    assert loading(f"zero.stage={stage}", "train.precision=fp32")[0] == 4 * SIZES.parameters
    scratch = loading(f"zero.stage={stage}", recipe="gpt/llama3-8b")
    assert scratch == (4 * SIZES.parameters, "all weights in fp32")


def test_what_cannot_be_read_in_slices_is_counted_whole(tmp_path: Path) -> None:
    lora = ("model.adapter={rank: 8, dora: true}",)
    assert loading(*lora) == (4 * SIZES.parameters, "all weights in fp32")
    assert "adapter" in str(read_whole(load_recipe("finetune/llama3-8b-sft", list(lora)).recipe))
    assert read_whole(load_recipe("finetune/llama3-8b-sft", ["model.adapter={rank: 8}"]).recipe) is None


def test_a_node_of_the_shipped_recipe() -> None:
    """8 ranks with their shards of fp32 copies and of both moments, and a block."""
    recipe = load_recipe("finetune/llama3-8b-sft", ["checkpoint.background=false"]).recipe
    plan = make_plan(recipe, SIZES, World(size=16, gpu=True))
    total, why = host_memory(recipe, plan, 8, gpu=True)
    each = GPU_RANK_BYTES + 12 * SIZES.parameters / 16 + 4 * TABLE
    assert total == pytest.approx(8 * each, rel=0.01)
    assert "the weights of a block" in why


def test_the_copy_for_a_checkpoint_beside_training_is_counted() -> None:
    """Of GPUs, the optimizer states are copied in any case; of CPUs, a copy is beside the states."""
    for gpu in (True, False):
        sizes = []
        for background in ("true", "false"):
            recipe = load_recipe("gpt/llama3-8b", [f"checkpoint.background={background}", "zero.stage=2"]).recipe
            plan = make_plan(recipe, SIZES, World(size=16, gpu=gpu))
            assert plan.background == (background == "true")
            sizes.append(host_memory(recipe, plan, 1, gpu=gpu)[0])
        more = plan.memory.parameters_bytes + (0 if gpu else plan.memory.optimizer_bytes)
        assert sizes[0] - sizes[1] == more
