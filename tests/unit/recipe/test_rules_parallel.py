"""Sizes of parallel axes: checked together, refused with those that do divide; the old name of the expert axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from shardyard.errors import RecipeError
from shardyard.planning.deepspeed_config import EXPERT_PRESETS
from shardyard.planning.memory import estimate_memory
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.loading.load import dump_recipe, load_recipe, parse_recipe
from shardyard.recipe.mesh import mesh_shape, ranks_together, together_in_words
from shardyard.recipe.renamed import RenamedFieldWarning
from shardyard.recipe.rules.parallel import parallel_rules
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Recipe
from shardyard.recipe.tensor_plans import TENSOR_PLANS, split_dimension
from support.measured import tiny_architecture
from support.tiny import LLAMA_SIZES


def recipe(workers: int = 8, *, config: dict[str, Any] | None = None, length: int = 32, **parallel: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "axes",
            "model": {"family": "llama", "config": {**LLAMA_SIZES, **(config or {})}},
            "data": {"sequence_length": length, "isolate_documents": False, "train": [{"source": "python-docs"}]},
            "train": {"steps": 10, "global_batch": 8, "precision": "fp32"},
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "zero": {"stage": 1},
            "parallel": parallel,
            "cluster": {"workers": workers},
        }
    )


@pytest.mark.parametrize(
    ("made", "field", "message"),
    [
        (
            recipe(6, tensor=4),
            "tensor",
            "6 rank(s) cannot be cut into groups of 4 that share a layer; set it to 3, 2, 1",
        ),
        (recipe(6, tensor=2, sequence=2), "tensor", "groups of 4 that share a layer; set it to 1, or"),
        (recipe(6, sequence=4), "sequence", "groups of 4 of a row; set it to 3, 2, 1, or train on a multiple of 4"),
        (recipe(8, tensor=2, expert=3), "expert", "8 rank(s) cannot be cut into groups of 3 that share experts; set"),
        (recipe(8, tensor=2, sequence=2, expert=2), "expert", "share experts too; set it to one of 4, 8, or to 1"),
        (recipe(8, tensor=2, data=8), "data", "is 8, but 8 ranks / 2 leave 4; set it to 4 or rest, or train on 16"),
        (
            recipe(8, tensor=4, config={"num_key_value_heads": 2}),
            "tensor",
            "the model's num_key_value_heads 2 cannot be shared by 4 ranks; set it to 1 or 2",
        ),
        (
            recipe(8, tensor=8, config={"num_attention_heads": 12, "hidden_size": 96, "num_key_value_heads": 12}),
            "tensor",
            "the model's num_attention_heads 12 cannot be shared by 8 ranks; set it to 1, 2, 3, 4, 6 or 12",
        ),
        (recipe(8, tensor=4, config={"intermediate_size": 66}), "tensor", "intermediate_size 66 cannot be shared by 4"),
        (
            recipe(8, sequence=4, length=34),
            "sequence",
            "data.sequence_length 34 cannot be shared by 4 ranks; set it to",
        ),
        (recipe(8, sequence=8), "sequence", "num_attention_heads 4 cannot be shared by 8 ranks; set it to 1, 2 or 4"),
        (
            recipe(4, sequence=4, config={"num_attention_heads": 12, "num_key_value_heads": 6, "hidden_size": 96}),
            "sequence",
            "num_key_value_heads 6 neither divides 4 nor is divided by it; set it to 1, 2, 3, 6 or 12",
        ),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(made: Recipe, field: str, message: str) -> None:
    found = [text for path, text in parallel_rules(made) if path == ("parallel", field)]
    assert any(message in text for text in found), found


@pytest.mark.parametrize(
    ("axes", "changes", "path", "message"),
    [
        ({"tensor": 2}, {"model": {"family": "opt"}}, "parallel.tensor", "is tested with cohere, gemma, "),
        ({"sequence": 2}, {"model": {"family": "opt"}}, "parallel.sequence", "not with opt (docs/large/parallel.md)"),
        ({"tensor": 2}, {"objective": "masked_lm"}, "parallel.tensor", "is for causal_lm and instruction, not for mas"),
        ({"tensor": 2, "expert": 2}, {}, "parallel.expert", "other losses than one rank, by 5e-4 after five steps"),
        ({"sequence": 2}, {"model": {"compile": True}}, "model.compile", "is not tested with parallel.sequence"),
        ({"tensor": 2}, {"model": {"adapter": {"rank": 4}}}, "model.adapter", "is not tested with parallel.tensor"),
        ({"tensor": 2}, {"zero": {"stage": 0}, "train": {"precision": "bf16"}}, "zero.stage", "in fp32 only; use 1"),
        ({"tensor": 2}, {"model": {"freeze": ["a.*"]}}, "model.freeze", "set parallel.tensor to 1"),
        ({"tensor": 2}, {"optimizer": {"name": "muon", "lr": 0.1}}, "optimizer.name", "muon needs whole matrices"),
        ({"tensor": 2}, {"zero": {"stage": 2, "offload_optimizer": True}}, "zero.offload_optimizer", "set it to false"),
        ({"sequence": 2}, {"model": {"attention": "eager"}}, "model.attention", "use sdpa, which takes"),
        (
            {"sequence": 2},
            {"model": {"family": "mistral", "config": {**LLAMA_SIZES, "sliding_window": 16}}},
            "parallel.sequence",
            "tokens see the 16 before them (sliding_window)",
        ),
        (
            {"sequence": 2},
            {"model": {"family": "mixtral", "experts": {"balance": 0.01}}},
            "model.experts.balance",
            "would count a part of each row",
        ),
        ({"tensor": 2}, {"model": {"module": "file.py:Model"}}, "parallel.tensor", "not for model.module"),
    ],
)
def test_what_an_axis_cannot_be_combined_with_is_refused(
    axes: dict[str, int], changes: dict[str, Any], path: str, message: str
) -> None:
    found = [text for at, text in parallel_rules(changed(recipe(8, **axes), changes)) if ".".join(map(str, at)) == path]
    assert any(message in text for text in found), found


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 2, "hpz_partition_size": 2}, "needs ZeRO stage 3, not 2"),
        ({"stage": 3, "hpz_partition_size": 3}, "must divide the 8 ranks and be fewer; sizes that do: [1, 2, 4]"),
        ({"stage": 3, "hpz_partition_size": 8}, "and be fewer"),
        ({"stage": 3, "hpz_partition_size": 4, "offload_parameters": True}, "not tested with zero.offload_parameters"),
    ],
)
def test_a_second_copy_of_the_weights_is_of_stage_3(zero: dict[str, Any], message: str) -> None:
    found = check(changed(recipe(8), {"zero": zero}))
    assert any(message in str(problem) for problem in found), found
    one, two = (changed(recipe(8), {"zero": {"stage": 3, "hpz_partition_size": size}}) for size in (1, 4))
    assert check(two) == []
    plans = [make_plan(made, tiny_architecture("llama"), World(size=8, gpu=False)) for made in (one, two)]
    compiled: Any = plans[1].deepspeed
    assert compiled["zero_optimization"]["zero_hpz_partition_size"] == 4
    extra = plans[1].memory.parameters_bytes - plans[0].memory.parameters_bytes
    assert extra == 4 * plans[0].architecture.parameters // 4, "a quarter of the weights in fp32"


def changed(made: Recipe, changes: dict[str, Any]) -> Recipe:
    plain = made.model_dump(mode="json")
    for name, value in changes.items():
        plain[name] = {**plain[name], **value} if isinstance(value, dict) else value
    return parse_recipe(plain)


def test_what_works_is_not_refused() -> None:
    for stage in (0, 1, 2, 3):
        for axes in ({"tensor": 2}, {"sequence": 4}, {"tensor": 2, "sequence": 2}):
            assert check(changed(recipe(8, **axes), {"zero": {"stage": stage}})) == []
    # Layers of Qwen2 see all tokens unless the configuration says otherwise.
    assert check(changed(recipe(8, sequence=2), {"model": {"family": "qwen2"}})) == []


def test_every_family_has_a_plan_of_layers_that_it_has() -> None:
    """Patterns that match nothing would leave matrices whole, without a word."""
    for family, plan in TENSOR_PLANS.items():
        model = skeleton(family)
        names = {name for name, module in model.named_modules() if getattr(module, "weight", None) is not None}
        for layer in (*plan.columns, *plan.rows, *plan.summed):
            assert sum(name.endswith(f".{layer}") for name in names) == 2, (family, layer)
        whole = {name for name in names if split_dimension(f"{name}.weight") is None}
        matrices = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        routed = {name for name in matrices if family in EXPERT_PRESETS and ".mlp." in name}  # along another axis
        assert (whole & matrices) - routed <= {"lm_head", "embed_out"}, family


def skeleton(family: str) -> nn.Module:
    with torch.device("meta"):
        config = AutoConfig.for_model(family, **LLAMA_SIZES, head_dim=8)
        return AutoModelForCausalLM.from_config(config)


def test_the_section_of_deepspeed_is_compiled() -> None:
    plan = make_plan(recipe(8, tensor=2, sequence=2), tiny_architecture("llama"), World(size=8, gpu=False))
    compiled: Any = plan.deepspeed
    # DeepSpeed counts the ranks of a sequence as data-parallel ones.
    assert compiled["train_batch_size"] == 2 * 8 == plan.micro_batch * plan.accumulation * plan.mesh.zero
    assert compiled["tensor_parallel"]["autotp_size"] == 2
    column, row = compiled["tensor_parallel"]["partition_config"]["layer_specs"]
    assert (column["partition_type"], row["partition_type"]) == ("column", "row")
    assert r".*\.self_attn\.q_proj\.weight$" in column["patterns"]
    assert r".*\.mlp\.down_proj\.weight$" in row["patterns"]


def test_sizes_are_checked_for_the_ranks_that_there_are() -> None:
    made = recipe(8, tensor=2)
    with pytest.raises(RecipeError, match=r"parallel.tensor: 3 rank\(s\) cannot be cut into groups of 2 that share a"):
        make_plan(made, tiny_architecture("llama"), World(size=3, gpu=False))


def test_consecutive_ranks_are_of_one_tensor_group_and_share_a_node() -> None:
    shape = mesh_shape(recipe(16, tensor=2, sequence=2, expert=8), 16)
    assert (shape.data, shape.expert, shape.sequence, shape.tensor) == (4, 8, 2, 2)
    assert str(shape) == "data 4, expert 8, sequence 2, tensor 2"
    assert shape.groups("tensor")[:2] == [(0, 1), (2, 3)]
    assert shape.groups("sequence")[:2] == [(0, 2), (1, 3)]
    assert shape.ranks("expert", 0) == tuple(range(8))
    assert shape.ranks("expert_data", 3) == (3, 11)
    assert shape.ranks("data", 0) == (0, 4, 8, 12)
    assert shape.layout() == {"world_size": 16, "expert_parallel": 8, "sequence_parallel": 2, "tensor_parallel": 2}
    assert ranks_together(recipe(16, tensor=2, sequence=2, expert=8)) == 8
    # Experts of more ranks than a node has GPUs lie on several; layers and rows never do.
    assert ranks_together(recipe(64, tensor=2, sequence=2, expert=16)) == 4
    assert together_in_words(recipe(8, tensor=4)) == "4 ranks share every layer (parallel.tensor)"
    assert together_in_words(recipe(8, sequence=4)) == "4 ranks share the tokens of a row (parallel.sequence)"
    assert together_in_words(recipe(8, expert=4)) == "4 ranks share the experts of a layer (parallel.expert)"


def test_the_batch_is_shared_by_the_ranks_that_the_other_axes_leave() -> None:
    plan = make_plan(recipe(8, tensor=2, sequence=2), tiny_architecture("llama"), World(size=8, gpu=False))
    assert (plan.mesh.data, plan.rows_per_rank) == (2, 4)
    assert plan.reasons["mesh"] == "8 ranks / (tensor 2 × sequence 2) = 2 that read different rows"


def test_memory_is_divided_by_the_axes() -> None:
    whole, tensor, sequence = (
        estimate_memory(made, tiny_architecture("llama"), mesh_shape(made, made.cluster.workers), micro_batch=2)
        for made in (recipe(1), recipe(2, tensor=2), recipe(2, sequence=2))
    )
    assert sequence.activations_bytes == whole.activations_bytes // 2
    assert sequence.logits_bytes == whole.logits_bytes // 2
    # ZeRO shards over the ranks of a sequence, too.
    assert sequence.optimizer_bytes == whole.optimizer_bytes // 2
    # Each rank of a tensor-parallel group has the embeddings and the head.
    assert whole.parameters_bytes // 2 < tensor.parameters_bytes < whole.parameters_bytes
    assert tensor.activations_bytes < whole.activations_bytes


def test_the_old_name_of_the_expert_axis_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    text = "extends: moe/mixtral-small\nname: old\nmodel: {experts: {parallel: 1}}\ncluster: {workers: 2}\n"
    path.write_text(text)
    with pytest.warns(RenamedFieldWarning, match=r"old.yaml:3: model.experts.parallel is now called parallel.expert"):
        made = load_recipe(str(path)).recipe
    assert made.parallel.expert == 1
    with pytest.warns(RenamedFieldWarning, match=r"-s model.experts.parallel=2"):
        assert load_recipe(str(path), ["model.experts.parallel=2"]).recipe.parallel.expert == 2
    path.write_text(f"{text}parallel: {{expert: 2}}\n")
    with pytest.raises(RecipeError, match=r"it is now called parallel\.expert"):
        load_recipe(str(path))


def test_a_run_from_before_the_section_continues_as_it_was(tmp_path: Path) -> None:
    made = load_recipe("moe/mixtral-small").recipe
    resolved = tmp_path / "resolved.yaml"
    old = dump_recipe(made)
    section = "parallel:\n  tensor: 1\n  sequence: 1\n  expert: 2\n  data: rest\n"
    assert section in old
    resolved.write_text(old.replace(section, "").replace("  experts:\n", "  experts:\n    parallel: 2\n"))
    assert load_recipe(str(resolved)).recipe == made
