"""Recipes with experts that cannot work are refused, each with what to do instead."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.errors import RecipeError
from shardyard.models.size.measure import measure
from shardyard.planning.architecture import Architecture
from shardyard.planning.deepspeed_config import EXPERT_PRESETS, deepspeed_config
from shardyard.planning.memory import estimate_memory
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import mesh_shape
from shardyard.recipe.rules.experts import expert_rules
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Recipe

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "max_position_embeddings": 64,
}


def recipe(parallel: int = 2, **sections: Any) -> Recipe:
    """A Mixtral whose experts are spread over two of two ranks; `sections` are merged over it, one level deep."""
    base: dict[str, Any] = {
        "name": "experts",
        "model": {"family": "mixtral", "config": SIZES, "experts": {"balance": 0.01}},
        "parallel": {"expert": parallel},
        "data": {"sequence_length": 32, "train": [{"source": "python-docs"}]},
        "train": {"steps": 10, "global_batch": 8, "precision": "fp32"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "zero": {"stage": 2},
        "cluster": {"workers": 2},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return parse_recipe(base)


def test_what_works_is_not_refused() -> None:
    for stage in (1, 2, 3):
        assert check(recipe(zero={"stage": stage})) == []
    assert list(expert_rules(recipe(parallel=4, cluster={"workers": 8}))) == []
    switch = {"family": "qwen3_moe", "config": {"num_experts": 4, "num_experts_per_tok": 1, "norm_topk_prob": False}}
    assert list(expert_rules(recipe(model=switch))) == []
    assert list(expert_rules(recipe(parallel=1, zero={"stage": 0}, model={"compile": True}))) == []


REFUSED: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    (
        {"parallel": 8, "cluster": {"workers": 8}},
        ("parallel", "expert"),
        "4 experts cannot be shared by 8 ranks; 4 divides them",
    ),
    (
        {"model": {"family": "gpt_oss", "config": {}}},
        ("parallel", "expert"),
        "deepseek_v2, deepseek_v3, mixtral, qwen2_moe, qwen3_moe, not of gpt_oss; set it to 1",
    ),
    (
        {"model": {"family": "llama", "config": {}, "experts": {"balance": 0.01}}},
        ("model", "experts", "balance"),
        "llama has no experts; remove it",
    ),
    (
        {"model": {"family": "llama", "config": {}, "experts": {"z_loss": 0.01}}},
        ("model", "experts", "z_loss"),
        "llama has no experts; remove it",
    ),
    (
        {"objective": "instruction", "model": {"experts": {"balance": 0.01}}},
        ("model", "experts", "balance"),
        "does nothing for the objective instruction, only for causal_lm",
    ),
    (
        {"objective": "instruction", "parallel": 2},
        ("parallel", "expert"),
        "for the objective causal_lm, not instruction",
    ),
    (
        {"model": {"config": SIZES | {"num_experts_per_tok": 1}}},
        ("model", "config", "num_experts_per_tok"),
        "learns nothing; use family qwen3_moe",
    ),
    (
        {"model": {"family": "qwen3_moe", "config": {"num_experts_per_tok": 1, "norm_topk_prob": True}}},
        ("model", "config", "num_experts_per_tok"),
        "learns nothing; set norm_topk_prob to false",
    ),
    (
        {"model": {"config": SIZES | {"router_jitter_noise": 0.1}}},
        ("model", "config", "router_jitter_noise"),
        "has no router noise; set it to 0",
    ),
    ({"zero": {"stage": 0}}, ("zero", "stage"), "norm of each rank alone with expert parallelism; use stage 1, 2 or 3"),
    ({"zero": {"stage": 2, "offload_optimizer": True}}, ("zero", "offload_optimizer"), "set it to false"),
    ({"zero": {"stage": 3, "offload_parameters": True}}, ("zero", "offload_parameters"), "set it to false"),
    ({"model": {"compile": True}}, ("model", "compile"), "cannot trace models with expert parallelism"),
    ({"model": {"adapter": {"rank": 4}}}, ("model", "adapter"), "set parallel.expert to 1"),
    ({"model": {"freeze": ["model.embed_tokens.*"]}}, ("model", "freeze"), "set parallel.expert to 1"),
    ({"optimizer": {"name": "lion", "lr": 1e-4}}, ("optimizer", "name"), "use one of adamw, adam, sgd, rmsprop"),
    ({"optimizer": {"name": "muon", "lr": 1e-2}}, ("optimizer", "name"), "use one of adamw, adam, sgd, rmsprop"),
]


@pytest.mark.parametrize(
    ("sections", "path", "message"), REFUSED, ids=[f"{path[-1]}-{m[:14]}" for _, path, m in REFUSED]
)
def test_what_cannot_work_is_refused(sections: dict[str, Any], path: tuple[str, ...], message: str) -> None:
    found = [text for at, text in expert_rules(recipe(**sections)) if at == path]
    assert any(message in text for text in found), found


def test_the_rules_are_among_those_of_every_recipe() -> None:
    assert set(expert_rules(recipe(zero={"stage": 0}))) <= set(check(recipe(zero={"stage": 0})))


def test_every_family_is_one_that_deepspeed_has_a_layout_for() -> None:
    from deepspeed.module_inject.auto_ep_presets.registry import PRESET_MODELS

    for family, preset in EXPERT_PRESETS.items():
        assert family in PRESET_MODELS[preset].hf_model_types


def test_the_section_of_deepspeed_is_compiled() -> None:
    compiled = deepspeed_config(recipe(), micro_batch=4, accumulation=1, gpu=False)
    assert compiled["expert_parallel"] == {
        "enabled": True,
        "autoep_size": 2,
        "preset_model": "mixtral",
        "load_balance_coeff": None,
    }
    alone = deepspeed_config(recipe(parallel=1), micro_batch=4, accumulation=1, gpu=False)
    assert "expert_parallel" not in alone
    # Ranks that share experts are data-parallel ranks: the arithmetic of batches does not change.
    del compiled["expert_parallel"]
    assert compiled == alone


def test_a_world_of_another_size_is_refused() -> None:
    """`--local` trains in one process whatever `cluster.workers` says."""
    sizes = measure(recipe().model, vocabulary=257)
    assert make_plan(recipe(), sizes, World(size=2, gpu=False)).world.size == 2
    with pytest.raises(RecipeError, match=r"parallel.expert.*1 rank\(s\) cannot be cut into groups of 2"):
        make_plan(recipe(), sizes, World(size=1, gpu=False))


def test_memory_counts_the_experts_of_one_rank() -> None:
    """What ZeRO shards anyway is divided by the data-parallel size, however experts are spread."""
    sizes: Architecture = measure(recipe().model, vocabulary=257)
    assert sizes.expert_parameters == 2 * 4 * 3 * 32 * 64
    elsewhere = sizes.expert_parameters // 2
    for stage in (1, 2, 3):
        all_here, spread = (
            estimate_memory(made, sizes, mesh_shape(made, 2), micro_batch=1)
            for made in (recipe(parallel, zero={"stage": stage}) for parallel in (1, 2))
        )
        assert spread.optimizer_bytes == all_here.optimizer_bytes
        assert all_here.gradients_bytes - spread.gradients_bytes == (4 * elsewhere if stage == 1 else 0)
        # Stage 3 gathers all of so small a model; experts of which each rank has its own are never gathered.
        gathered = 4 * sizes.expert_parameters
        assert all_here.parameters_bytes - spread.parameters_bytes == (4 * elsewhere if stage < 3 else gathered)
