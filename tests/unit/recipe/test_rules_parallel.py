"""Sizes of parallel axes: checked together, refused with those that do divide; the old name of the expert axis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import RecipeError
from shardyard.planning.memory import estimate_memory
from shardyard.planning.plan import World, make_plan
from shardyard.recipe.loading.load import dump_recipe, load_recipe, parse_recipe
from shardyard.recipe.mesh import mesh_shape, ranks_together, together_in_words
from shardyard.recipe.renamed import RenamedFieldWarning
from shardyard.recipe.rules.parallel import parallel_rules
from shardyard.recipe.schema import Recipe
from support.measured import tiny_architecture

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
}


def recipe(workers: int = 8, *, config: dict[str, Any] | None = None, length: int = 32, **parallel: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "axes",
            "model": {"family": "llama", "config": {**SIZES, **(config or {})}},
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
        (recipe(8, tensor=2, expert=3), "expert", "4 data-parallel rank(s) (8 / 2) cannot be cut into groups of 3"),
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


def test_sizes_are_checked_for_the_ranks_that_there_are() -> None:
    made = recipe(8, tensor=2)
    with pytest.raises(RecipeError, match=r"parallel.tensor: 3 rank\(s\) cannot be cut into groups of 2 that share a"):
        make_plan(made, tiny_architecture("llama"), World(size=3, gpu=False))


def test_consecutive_ranks_are_of_one_tensor_group_and_share_a_node() -> None:
    shape = mesh_shape(recipe(16, tensor=2, sequence=2, expert=2), 16)
    assert (shape.data, shape.expert, shape.sequence, shape.tensor) == (4, 2, 2, 2)
    assert shape.groups("tensor")[:2] == [(0, 1), (2, 3)]
    assert shape.groups("sequence")[:2] == [(0, 2), (1, 3)]
    assert shape.ranks("expert", 0) == (0, 4)
    assert shape.ranks("data", 0) == (0, 4, 8, 12)
    assert shape.layout() == {"world_size": 16, "expert_parallel": 2, "sequence_parallel": 2, "tensor_parallel": 2}
    assert ranks_together(recipe(16, tensor=2, sequence=2, expert=2)) == 8
    # Experts of more ranks than a node has GPUs lie on several; layers and rows never do.
    assert ranks_together(recipe(64, tensor=2, sequence=2, expert=16)) == 4
    assert together_in_words(recipe(8, tensor=4)) == "4 ranks share every layer (parallel.tensor)"
    assert together_in_words(recipe(8, sequence=4)) == "4 ranks share the tokens of a row (parallel.sequence)"
    assert together_in_words(recipe(8, expert=4)) == "4 ranks share the experts of a layer (parallel.expert)"


def test_the_batch_is_shared_by_the_ranks_that_the_other_axes_leave() -> None:
    plan = make_plan(recipe(8, tensor=2, sequence=2), tiny_architecture("llama"), World(size=8, gpu=False))
    assert (plan.mesh.data, plan.rows_per_rank) == (2, 4)
    assert plan.reasons["mesh"] == "8 ranks / (tensor 2 × sequence 2) read different rows"


def test_memory_is_divided_by_the_axes() -> None:
    whole, tensor, sequence = (
        estimate_memory(made, tiny_architecture("llama"), mesh_shape(made, made.cluster.workers), micro_batch=2)
        for made in (recipe(1), recipe(2, tensor=2), recipe(2, sequence=2))
    )
    assert sequence.activations_bytes == whole.activations_bytes // 2
    assert sequence.logits_bytes == whole.logits_bytes // 2
    # ZeRO shards over the ranks of a sequence, too.
    assert sequence.optimizer_bytes == whole.optimizer_bytes // 2
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
