"""What exists at the same time in a step: logits, gradients of activations, gradients and their copies."""

from __future__ import annotations

from typing import Any

import pytest

from shardyard.planning.architecture import Architecture
from shardyard.planning.memory import BACKWARD, Memory, estimate_memory
from shardyard.planning.reduction import bucket_elements
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import data_mesh

LENGTH, ROWS, WIDTH, LAYERS, VOCABULARY = 128, 4, 64, 6, 5000
TOKENS = LENGTH * ROWS
NOT_HASHED: dict[str, Any] = {"replicas": {"every": 0}}
HASHED: dict[str, Any] = {"replicas": {"every": 100}}
PARAMETERS = 5_000_000
LOGITS = TOKENS * VOCABULARY


def memory(
    stage: int = 1,
    objective: str = "causal_lm",
    vocabulary: int = VOCABULARY,
    trained: int | None = None,
    **sections: Any,
) -> Memory:
    """Of one of four ranks in bf16."""
    recipe = parse_recipe(
        {
            "name": "peak",
            "model": {"family": "bert" if "masked" in objective else "gpt2", **sections.pop("model", {})},
            "objective": objective,
            "data": {"sequence_length": LENGTH, "train": [{"source": "python-docs"}]}
            | ({"isolate_documents": False} if objective == "causal_lm" else {}),
            "train": {"global_batch": 4 * ROWS, "steps": 10, "precision": "bf16"},
            "optimizer": {"name": "adam", "lr": 1e-3},
            "zero": {"stage": stage, **sections.pop("zero", {})},
            "cluster": NOT_HASHED,
            **sections,
        }
    )
    size = Architecture(
        family="gpt2",
        parameters=PARAMETERS,
        matmul_parameters=PARAMETERS,
        largest_block_parameters=PARAMETERS // LAYERS,
        largest_tensor_parameters=VOCABULARY * WIDTH,
        layers=LAYERS,
        hidden_size=WIDTH,
        heads=4,
        vocabulary=vocabulary,
        positions=LENGTH,
        trainable_parameters=trained,
    )
    return estimate_memory(recipe, size, data_mesh(4), micro_batch=ROWS)


def test_of_masked_rows_the_loss_takes_the_logits_of_targets_alone() -> None:
    every = memory().logits_bytes
    assert every == 2 * LOGITS * (2 + 4)
    hidden = memory(objective="masked_lm", masking={"probability": 0.1}).logits_bytes
    # Those of all tokens in bf16 once; of the targets copies in bf16 and fp32, and their gradients.
    assert hidden == 2 * LOGITS + 2 * round(0.1 * LOGITS) * (2 + 4)


def test_stage_1_in_bf16_keeps_gradients_beside_their_sum() -> None:
    """DeepSpeed sets them to zero after each micro-batch; they are reduced when the activations are gone."""
    assert (memory().gradients_bytes, memory().buffers_bytes) == (4 * PARAMETERS, 2 * PARAMETERS)
    # A sum in bf16 goes through the buckets of stages 1 and 2, which come after the logits.
    buckets: dict[str, Any] = {"grad_accum_dtype": "bf16", "bucket_bytes": 4000}
    assert memory(zero=buckets).buffers_bytes == 0
    assert memory(vocabulary=8, zero=buckets).buffers_bytes == 1000 * (2 * 2 + 4)
    # Fewer activations and logits than a flat copy of the gradients.
    few = memory(vocabulary=8)
    assert few.buffers_bytes == 2 * PARAMETERS + 4 * PARAMETERS - few.activations_bytes - few.logits_bytes


@pytest.mark.parametrize("vocabulary", [VOCABULARY, 8])
def test_logits_are_gone_before_a_block_runs_backward(vocabulary: int) -> None:
    found = memory(stage=3, vocabulary=vocabulary, zero={"bucket_bytes": 4000})
    block = 34 * TOKENS * WIDTH
    logits, copies = 2 * TOKENS * vocabulary * (2 + 4), VOCABULARY * WIDTH * (2 + 4)
    peak = max(logits, BACKWARD * block + copies)
    assert found.activations_bytes + found.logits_bytes + found.buffers_bytes == LAYERS * block + 4000 + peak


def test_a_teacher_has_logits_too() -> None:
    """In fp32 both logarithms, a distribution, a difference and a product, and where the distribution is not 0."""
    teacher = {"distillation": {"teacher": "run:teacher"}}
    found = memory(objective="distillation", **teacher).logits_bytes
    assert found == LOGITS * (2 * 2 + 5 * 4 + 1)


def test_buckets_of_stage_2_come_after_the_logits() -> None:
    assert memory(stage=2, zero={"bucket_bytes": 4000}).buffers_bytes == 0
    # Half of what a block keeps are gradients of activations, and a small bucket is converted while it runs backward.
    block = 34 * TOKENS * WIDTH
    few = memory(stage=2, vocabulary=8, zero={"bucket_bytes": 4000})
    assert few.activations_bytes + few.logits_bytes == LAYERS * block + BACKWARD * block
    assert few.buffers_bytes == 1000 * (2 * 2 + 4)
    # One that holds all gradients is converted when the activations are gone.
    whole = memory(stage=2, vocabulary=8)
    assert whole.buffers_bytes == max(
        2 * 2 * PARAMETERS, (2 * 2 + 4) * PARAMETERS - whole.activations_bytes - whole.logits_bytes
    )


def test_small_adapters_take_less_than_a_hash_of_the_weights() -> None:
    """Weights below a mebibyte are put together, and products of some of them exist beside."""
    adapter: dict[str, Any] = {"adapter": {"rank": 1}}
    size: dict[str, Any] = {"model": adapter, "vocabulary": 8, "trained": 1000}
    found, without = memory(2, **size, cluster=HASHED), memory(2, **size)
    used = found.activations_bytes + found.logits_bytes
    assert found.buffers_bytes == 2 * 2 * (PARAMETERS + 1000) - used > without.buffers_bytes
    # What ZeRO-3 shards is not hashed.
    assert memory(3, **size, cluster=HASHED) == memory(3, **size)


def test_stage_2_gets_buckets_of_an_even_number() -> None:
    """DeepSpeed refuses others with an assertion."""
    recipe = parse_recipe(
        {
            "name": "odd",
            "model": {"family": "gpt2"},
            "data": {"sequence_length": 8, "train": [{"source": "python-docs"}]},
            "train": {"global_batch": 4, "steps": 10},
            "optimizer": {"name": "adam", "lr": 1e-3},
            "zero": {"stage": 2, "bucket_bytes": 1020},
        }
    )
    assert bucket_elements(recipe.zero, 4) == 254


@pytest.mark.parametrize("batches", [1, 2])
def test_gradients_of_a_steps_only_batch_come_as_activations_go(batches: int) -> None:
    """Without ZeRO in fp32, which sets gradients to None after a step."""
    train = {"global_batch": 4 * ROWS * batches, "steps": 10, "precision": "fp32"}
    many = memory(0, train=train)
    assert many.gradients_bytes == (0 if batches == 1 else 4 * PARAMETERS)
    few = memory(0, vocabulary=8, train=train)
    block = 2 * 34 * TOKENS * WIDTH
    gone = few.activations_bytes + few.logits_bytes - round((1 + BACKWARD) * block)
    assert few.gradients_bytes == 4 * PARAMETERS - (gone if batches == 1 else 0)
