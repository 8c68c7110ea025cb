"""Memory as papers count it: model states of ZeRO (Rajbhandari et al. 2020), activations of Korthikanti et al. 2022."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from shardyard.planning.activations import Kept
from shardyard.planning.architecture import Architecture
from shardyard.planning.memory import BACKWARD, estimate_memory
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import MeshShape, data_mesh
from shardyard.recipe.schema import Recipe


def recipe_of(**sections: Any) -> Recipe:
    """A recipe of 16 bits, and of rows of 2048 tokens; `sections` are merged over it, one level deep."""
    base: dict[str, Any] = {
        "name": "published",
        "model": {"family": "gpt2", "logits_chunk": 1},
        "data": {"sequence_length": 2048, "isolate_documents": False, "train": [{"source": "python-docs"}]},
        "train": {"global_batch": 64, "steps": 100, "precision": "bf16"},
        "optimizer": {"name": "adam", "lr": 1e-3},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return parse_recipe(base)


def gpt(parameters: float, layers: int, width: int, heads: int) -> Architecture:
    """A GPT without a block to gather, as papers count no working memory."""
    return Architecture(
        family="gpt2",
        parameters=round(parameters),
        matmul_parameters=round(parameters),
        largest_block_parameters=0,
        layers=layers,
        hidden_size=width,
        heads=heads,
        vocabulary=51200,
        positions=2048,
    )


# Korthikanti et al. 2022, table 3: heads, width, layers, tensor-parallel size, rows of a micro-batch.
MODELS = {
    "22B": (64, 6144, 48, 8, 4),
    "175B": (96, 12288, 96, 8, 1),
    "530B": (128, 20480, 105, 8, 1),
    "1T": (160, 25600, 128, 8, 1),
}


def activations(name: str, tensor: int, **model: Any) -> float:
    """Bytes of all blocks, without the gradients of the one whose backward pass runs."""
    heads, width, layers, _, rows = MODELS[name]
    mesh = MeshShape((("expert_data", 1), ("expert", 1), ("tensor", tensor)))
    recipe, size = recipe_of(model={"logits_chunk": 1, **model}), gpt(1e9, layers, width, heads)
    found = estimate_memory(recipe, size, mesh, micro_batch=rows)
    working = BACKWARD / (layers + BACKWARD)
    # The logits of one token are gone when a block runs backward.
    return (found.activations_bytes + 2 * 51200 * (2 + 4)) * (1 - working)


@pytest.mark.parametrize("name", MODELS)
def test_activations_of_korthikanti(name: str) -> None:
    """Equation 1: s·b·h·(34 + 5·a·s/h) a layer; equation 2 with a tensor-parallel size; selective: without scores."""
    heads, width, layers, tensor, rows = MODELS[name]
    length = 2048
    unit, scores = length * rows * width * layers, 5 * heads * length / width
    assert activations(name, 1, attention="eager") == pytest.approx(unit * (34 + scores), rel=1e-6)
    # Fused attention recomputes the scores, as selective recomputation does.
    assert activations(name, 1) == pytest.approx(unit * 34, rel=1e-6)
    assert activations(name, tensor) == pytest.approx(unit * (10 + 24 / tensor), rel=1e-6)


@pytest.mark.parametrize(("name", "scores"), [("175B", 80), ("530B", 64)])
def test_scores_take_the_part_that_korthikanti_names(name: str, scores: int) -> None:
    """Section 5: 5·a·s/h is 80 for GPT-3 and 64 for the 530B, so that selective recomputation saves 70 % and 65 %."""
    saved = 1 - activations(name, 1) / activations(name, 1, attention="eager")
    assert saved == pytest.approx(scores / (34 + scores), rel=1e-6)
    assert saved == pytest.approx({80: 0.70, 64: 0.65}[scores], abs=0.005)


def test_full_recomputation_keeps_the_inputs_of_blocks() -> None:
    """Section 5: 2·s·b·h a layer, and beside it the block that is recomputed."""
    heads, width, layers, _, rows = MODELS["175B"]
    recipe = recipe_of(model={"activation_checkpointing": True, "logits_chunk": 1})
    found = estimate_memory(recipe, gpt(1e9, layers, width, heads), data_mesh(1), micro_batch=rows)
    unit = 2048 * rows * width
    assert found.activations_bytes == pytest.approx(2 * unit * layers + (1 + BACKWARD) * 34 * unit, rel=1e-3)


def test_what_was_counted_takes_the_place_of_the_formula() -> None:
    counted = Kept(blocks=1000.0, largest=100.0, inputs=20.0, rest=3.0, pairs=0.0)
    size = dataclasses.replace(
        gpt(1e9, 10, 64, 4), kept_16=counted, kept_32=dataclasses.replace(counted, blocks=2000.0)
    )

    def of(precision: str = "bf16", **model: Any) -> int:
        recipe = recipe_of(model={"logits_chunk": 0, **model}, train={"precision": precision})
        return estimate_memory(recipe, size, data_mesh(1), micro_batch=1).activations_bytes

    # The logits are more than the gradients of a block.
    assert of() == 2048 * (1000 + 3)
    assert of("fp32") == 2048 * (2000 + 3)
    assert of(attention="eager") == 2048 * (1000 + 3 + 10 * 5 * 4 * 2048)
    # Compiled element-wise operations keep what the formula counts.
    assert of(compile=True) == 2048 * 10 * 34 * 64


# Rajbhandari et al. 2020, figure 1 and section 5: model states of 7.5 billion weights on 64 GPUs, in GB.
@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_model_states_of_zero(stage: int, gigabytes: float) -> None:
    # Without what a step of stage 3 gathers.
    bare = {"live_parameters": 0, "bucket_bytes": 1000}
    recipe = recipe_of(zero={"stage": stage, "grad_accum_dtype": "bf16", **bare})
    found = estimate_memory(recipe, gpt(7.5e9, 1, 1, 1), data_mesh(64), micro_batch=1)
    states = found.parameters_bytes + found.gradients_bytes + found.optimizer_bytes
    assert states / 1e9 == pytest.approx(gigabytes, rel=0.005)


def test_model_states_with_gradients_in_fp32() -> None:
    """The default: 2 bytes more for each gradient that a rank keeps."""
    recipe = recipe_of(zero={"stage": 1})
    found = estimate_memory(recipe, gpt(7.5e9, 1, 1, 1), data_mesh(64), micro_batch=1)
    states = found.parameters_bytes + found.gradients_bytes + found.optimizer_bytes
    assert states / 1e9 == pytest.approx(31.4 + 2 * 7.5, rel=0.005)
