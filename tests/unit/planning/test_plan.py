"""The plan: what it derives, why, what it refuses, and the DeepSpeed dictionary that a recipe compiles to."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardyard.errors import RecipeError
from shardyard.planning.architecture import flops_per_token
from shardyard.planning.memory import Memory, estimate_memory
from shardyard.planning.micro_batch import LOGITS_CHUNK, MAX_MICRO_BATCH_TOKENS, with_logits_chunk
from shardyard.planning.plan import RunPlan, World, fixed, make_plan
from shardyard.planning.plan_text import rows
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import data_mesh
from shardyard.recipe.schema import Recipe
from support.measured import GPT2
from support.waiting import PATIENCE_SECONDS

GOLDEN = Path(__file__).parents[1] / "golden" / "deepspeed"


def recipe_of(**sections: Any) -> Recipe:
    """A recipe of GPT-2 124M; `sections` are merged over it, one level deep."""
    base: dict[str, Any] = {
        "name": "plan",
        "model": {"family": "gpt2"},
        "data": {"sequence_length": 1024, "train": [{"source": "python-docs"}]},
        "train": {"global_batch": 64, "steps": 100, "precision": "bf16"},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return parse_recipe(base)


def plan_of(*, size: int = 1, gpu: bool = False, device_bytes: int | None = None, **sections: Any) -> RunPlan:
    return make_plan(recipe_of(**sections), GPT2, World(size=size, gpu=gpu, device_bytes=device_bytes))


# The file's name → sections of the recipe, and whether ranks have GPUs. Together: every stage, precision, optimizer and
# way to offload.
COMPILED: dict[str, tuple[dict[str, Any], bool]] = {
    "zero0-fp32-adamw": ({"zero": {"stage": 0}, "train": {"precision": "fp32"}}, False),
    "zero0-bf16-sgd": (
        {"zero": {"stage": 0}, "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.8, "nesterov": True}},
        True,
    ),
    "zero1-bf16-adam-gpu": (
        {"zero": {"stage": 1}, "optimizer": {"name": "adam", "weight_decay": 0.1, "betas": [0.8, 0.9]}},
        True,
    ),
    "zero1-fp32-rmsprop": (
        {"zero": {"stage": 1}, "train": {"precision": "fp32"}, "optimizer": {"name": "rmsprop", "alpha": 0.9}},
        False,
    ),
    "zero1-bf16-muon": (
        {"zero": {"stage": 1}, "optimizer": {"name": "muon", "lr": 0.02, "aux_lr": 3e-4, "weight_decay": 0.01}},
        True,
    ),
    "zero2-fp16-adamw-gpu": (
        {"zero": {"stage": 2}, "train": {"precision": "fp16", "initial_loss_scale": 12, "micro_batch": 2}},
        True,
    ),
    "zero2-bf16-lion": ({"zero": {"stage": 2}, "optimizer": {"name": "lion", "lr": 1e-4}}, False),
    "zero2-bf16-lion-offload": (
        {"zero": {"stage": 2, "offload_optimizer": True}, "optimizer": {"name": "lion", "lr": 1e-4}},
        True,
    ),
    "zero2-bf16-adagrad-offload": (
        {"zero": {"stage": 2, "offload_optimizer": True}, "optimizer": {"name": "adagrad", "lr": 1e-2}},
        False,
    ),
    "zero3-bf16-adamw-offload-gpu": (
        {"zero": {"stage": 3, "offload_optimizer": True, "offload_parameters": True, "bucket_bytes": 8_000_000}},
        True,
    ),
    "zero3-bf16-adamw-nvme-gpu": (
        {"zero": {"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/disk", "offload_parameters": "cpu"}},
        True,
    ),
    "zero3-fp32-adagrad": (
        {
            "zero": {"stage": 3},
            "train": {"precision": "fp32", "gradient_clipping": 0.0},
            "optimizer": {"name": "adagrad"},
        },
        False,
    ),
}


def compiled(case: str) -> dict[str, Any]:
    sections, gpu = COMPILED[case]
    # Where the memory of GPUs is not known, a plan takes one row.
    return plan_of(size=2, gpu=gpu, device_bytes=2**40 if gpu else None, **sections).deepspeed


@pytest.mark.parametrize("case", COMPILED)
def test_the_compiled_dictionary_is_golden(case: str) -> None:
    assert compiled(case) == json.loads((GOLDEN / f"{case}.json").read_text())


def test_every_golden_dictionary_belongs_to_a_case() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(COMPILED)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


@pytest.mark.parametrize("case", COMPILED)
def test_nothing_is_left_to_deepspeed_to_choose(case: str) -> None:
    found = list(leaves(compiled(case)))
    assert len(found) > 10
    assert "auto" not in found


PARSE_ALL = """
import json, sys
from pathlib import Path
from deepspeed.runtime import config as parser
parser.dist.get_rank, parser.dist.get_world_size = lambda: 0, lambda: 2
for path in sorted(Path(sys.argv[1]).iterdir()):
    config = parser.DeepSpeedConfig(json.loads(path.read_text()))
    batch = config.train_batch_size, config.train_micro_batch_size_per_gpu, config.gradient_accumulation_steps
    print(json.dumps([path.stem, batch, int(config.zero_optimization_stage), config.optimizer_name]))
"""


@pytest.mark.slow
def test_deepspeeds_own_parser_accepts_every_golden_dictionary() -> None:
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", PARSE_ALL, str(GOLDEN)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    parsed = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('["')]
    assert {name for name, *_ in parsed} == set(COMPILED)
    for name, (global_batch, micro_batch, accumulation), stage, optimizer in parsed:
        assert global_batch == 64 == micro_batch * accumulation * 2, name
        assert name.startswith(f"zero{stage}-")
        if optimizer is not None:
            assert optimizer.lower() in name


@given(
    size=st.integers(1, 16),
    rows=st.integers(1, 96),
    length=st.sampled_from([2, 100, 1024, 8192, 20000]),
    memory=st.sampled_from([None, 1, 4 * 2**30, 2**40]),
)
def test_micro_batches_always_make_up_the_global_batch(size: int, rows: int, length: int, memory: int | None) -> None:
    plan = plan_of(
        size=size,
        device_bytes=memory,
        train={"global_batch": rows * size},
        data={"sequence_length": length, "streams": size},
    )
    assert plan.micro_batch * plan.accumulation * size == rows * size
    assert plan.rows_per_rank == rows
    assert plan.micro_batch == 1 or plan.micro_batch * length <= MAX_MICRO_BATCH_TOKENS
    assert plan.tokens_per_step == rows * size * length
    assert plan.streams % size == 0
    assert plan.deepspeed["train_batch_size"] == rows * size


@given(tokens=st.integers(1, 10**9), rows=st.integers(1, 64), length=st.integers(2, 4096))
def test_tokens_are_rounded_up_to_whole_steps(tokens: int, rows: int, length: int) -> None:
    plan = plan_of(
        train={"tokens": tokens, "steps": None, "global_batch": rows}, data={"sequence_length": length, "streams": 1}
    )
    assert 0 <= plan.tokens - tokens < plan.tokens_per_step
    assert plan.flops == plan.flops_per_token * plan.tokens


@pytest.mark.parametrize(
    ("size", "sections", "path", "message"),
    [
        (3, {}, "train.global_batch", "64 rows cannot be shared by 3 ranks"),
        (65, {}, "train.global_batch", "64 rows cannot be shared by 65 ranks"),
        (2, {"train": {"micro_batch": 5}}, "train.micro_batch", "5 does not divide the 32 rows of each rank"),
        (2, {"train": {"micro_batch": 64}}, "train.micro_batch", "64 does not divide the 32 rows"),
        (4, {"data": {"streams": 6}}, "data.streams", "6 streams cannot be shared by 4 ranks"),
    ],
)
def test_a_world_that_does_not_divide_is_refused(size: int, sections: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        plan_of(size=size, **sections)
    (problem,) = caught.value.problems
    assert problem.path == path
    assert message in problem.message


@pytest.mark.parametrize(
    ("size", "batch", "streams"),
    [(1, 64, 64), (64, 128, 64), (128, 128, 128), (128, 1024, 1024), (512, 1024, 1024), (101, 202, 202), (2, 122, 122)],
)
def test_any_number_of_ranks_that_divides_the_global_batch_has_streams(size: int, batch: int, streams: int) -> None:
    """The number depends on the ranks only in whether the default fits, so that the order of the data hardly does."""
    plan = plan_of(size=size, train={"global_batch": batch})
    assert plan.streams == streams
    assert ("global batch, so that" in plan.reasons["streams"]) is (streams == batch > 64)


def test_the_micro_batch_shrinks_until_the_estimate_fits() -> None:
    """What a micro-batch needs, as the plan itself estimates it, and one byte less."""
    all_logits = {"logits_chunk": 0, "activation_checkpointing": False}
    recipe = recipe_of(model=all_logits)
    needs = {m: estimate_memory(recipe, GPT2, data_mesh(1), micro_batch=m).device_bytes for m in (1, 2, 4, 8)}
    assert sorted(needs.values()) == list(needs.values())
    for micro_batch, smaller in ((8, 4), (4, 2), (2, 1)):
        assert plan_of(device_bytes=needs[micro_batch], model=all_logits).micro_batch == micro_batch
        assert plan_of(device_bytes=needs[micro_batch] - 1, model=all_logits).micro_batch == smaller
    tight = plan_of(device_bytes=needs[1], model=all_logits)
    assert (tight.micro_batch, tight.fits) == (1, True)
    assert "that fits" in tight.reasons["micro_batch"]
    none = plan_of(device_bytes=needs[1] - 1, model=all_logits)
    assert (none.micro_batch, none.fits) == (1, False)
    assert "not even one row fits" in none.reasons["micro_batch"]


def test_logits_are_computed_by_chunks_where_all_of_them_do_not_fit() -> None:
    recipe = recipe_of(train={"micro_batch": 8})
    whole, chunked = (
        estimate_memory(with_logits_chunk(recipe, chunk), GPT2, data_mesh(1), micro_batch=8) for chunk in (0, 1024)
    )
    assert chunked.logits_bytes < whole.logits_bytes / 4
    assert dataclasses.replace(chunked, logits_bytes=whole.logits_bytes) == whole
    for chosen, have, expected, why in (
        (None, whole.device_bytes, 0, "leaves room"),
        (None, whole.device_bytes - 1, LOGITS_CHUNK, "does not fit"),
        (None, None, LOGITS_CHUNK, "not known"),
        (0, whole.device_bytes - 1, 0, "given by"),
        (77, whole.device_bytes, 77, "given by"),
    ):
        plan = plan_of(device_bytes=have, train={"micro_batch": 8}, model={"logits_chunk": chosen})
        assert plan.logits_chunk == fixed(recipe, plan).model.logits_chunk == expected
        assert why in plan.reasons["logits_chunk"]
    settings = {"compile": True, "activation_checkpointing": False}
    compiled = plan_of(device_bytes=whole.device_bytes - 1, train={"micro_batch": 8}, model=settings)
    assert compiled.logits_chunk == LOGITS_CHUNK


def test_fits_is_not_known_without_the_devices_memory() -> None:
    assert plan_of().fits is None
    assert "fits" not in plan_of().reasons["micro_batch"]


def test_a_pinned_micro_batch_is_kept_even_where_it_does_not_fit() -> None:
    plan = plan_of(device_bytes=1, train={"micro_batch": 32})
    assert (plan.micro_batch, plan.accumulation, plan.fits) == (32, 2, False)
    assert plan.reasons["micro_batch"] == "pinned by train.micro_batch"


def test_a_plan_says_that_rows_of_one_document_pack_nothing() -> None:
    alone = plan_of(data={"isolation": "rows", "packing": "best_fit"})
    assert alone.reasons["isolation"] == "given by data.isolation; so nothing is packed, whatever data.packing says"
    assert "packed" not in plan_of(data={"isolation": "rows"}).reasons["isolation"]


def test_every_derived_number_has_a_reason() -> None:
    given_by_others = {"world", "architecture", "memory", "deepspeed", "reasons", "precision_known"}
    given_by_others |= {"isolation", "stages", "sizes", "sources"}  # of models that were probed, and of mixtures alone
    given_by_others |= {"checkpoint_seconds"}  # explained with the number of steps, which it replaces
    derived = {field.name for field in dataclasses.fields(RunPlan)} - given_by_others
    plan = plan_of()
    assert set(plan.reasons) == derived
    assert all(plan.reasons.values())
    assert plan.reasons["accumulation"] == "64 rows a rank / micro-batch of 8"
    assert plan.reasons["rows_per_rank"] == "64 rows / 1 ranks"


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (9, 1), (100, 10), (109, 10)])
def test_evaluations_and_checkpoints_come_ten_times_by_default(steps: int, every: int) -> None:
    plan = plan_of(train={"steps": steps})
    assert (plan.evaluate_every, plan.checkpoint_every) == (every, every)
    pinned = plan_of(train={"steps": steps}, evaluate={"every": 1}, checkpoint={"every": 3})
    assert (pinned.evaluate_every, pinned.checkpoint_every) == (1, 3)
    timed = plan_of(train={"steps": steps}, checkpoint={"every": "30m"})
    assert (timed.checkpoint_every, timed.checkpoint_seconds, pinned.checkpoint_seconds) == (steps, 1800.0, None)
    assert ("checkpoint", "every 30m00s", "by the recipe: rank 0's clock, and at the end") in list(rows(timed))


def test_a_time_budget_may_make_fewer_steps_of_those_that_are_given() -> None:
    why = plan_of(train={"minutes": 4.5}).reasons["steps"]
    assert why == "given by train.steps; fewer if 4.5 minutes hold fewer, measured when it starts"


def test_lengths_may_be_shares_of_the_run() -> None:
    shares = {"schedule": {"warmup": 0.1}, "evaluate": {"every": 0.25}, "checkpoint": {"every": 0.5}}
    for steps, lengths in ((100, (10, 25, 50, 5)), (3, (1, 1, 2, 1)), (1, (0, 1, 1, 1))):
        plan = plan_of(train={"steps": steps}, tracking={"every": 0.05}, **shares)
        assert (plan.warmup, plan.evaluate_every, plan.checkpoint_every, plan.record_every) == lengths
    assert plan_of(schedule={"warmup": 0.1}).reasons["warmup"] == "0.1 of 100 steps"
    assert plan_of(schedule={"warmup": 10}).reasons["warmup"] == "given by the recipe"


def test_flops_of_gpt2_by_hand() -> None:
    """PaLM, appendix B: 6·N + 12·L·H·Q·T with H·Q = 768; N is 85 M in blocks, and the head."""
    blocks = 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    head = 50257 * 768
    assert GPT2.matmul_parameters == blocks + head
    assert flops_per_token(GPT2, 1024) == 6 * (blocks + head) + 12 * 12 * 768 * 1024
    assert plan_of().flops_per_token == flops_per_token(GPT2, 1024)


def states(memory: Memory) -> tuple[int, int, int]:
    return memory.parameters_bytes, memory.gradients_bytes, memory.optimizer_bytes


# As little as ZeRO-3 can gather at once.
NOTHING_GATHERED = {"live_parameters": 0, "bucket_bytes": 1000}
# 1024 parameters in one block, so that every share is a whole number.
SMALL = dataclasses.replace(GPT2, parameters=1024, largest_block_parameters=256)


@pytest.mark.parametrize(
    ("precision", "stage", "expected"),
    [
        # 2 + 4 + (4 + 4 + 4) bytes a parameter: 2 more than in the ZeRO paper, for gradients in fp32.
        ("bf16", 0, (2 * 1024, 4 * 1024, 12 * 1024)),
        ("bf16", 1, (2 * 1024, 4 * 1024, 12 * 1024 // 4)),
        ("bf16", 2, (2 * 1024, 4 * 1024 // 4, 12 * 1024 // 4)),
        # So small a model stays gathered, beside the rank's share (`test_zero3.py` has larger ones).
        ("bf16", 3, (2 * 1024 // 4 + 2 * 1024, 4 * 1024 // 4, 12 * 1024 // 4)),
        ("fp16", 0, (2 * 1024, 4 * 1024, 12 * 1024)),
        # fp32 without ZeRO needs no master copy; with it there is one of each partition.
        ("fp32", 0, (4 * 1024, 4 * 1024, 8 * 1024)),
        ("fp32", 1, (4 * 1024, 4 * 1024, 12 * 1024 // 4)),
        ("fp32", 3, (4 * 1024 // 4 + 4 * 1024, 4 * 1024 // 4, 12 * 1024 // 4)),
    ],
)
def test_model_states_by_hand(precision: str, stage: int, expected: tuple[int, int, int]) -> None:
    recipe = recipe_of(train={"precision": precision}, zero={"stage": stage})
    assert states(estimate_memory(recipe, SMALL, data_mesh(4), micro_batch=1)) == expected


@pytest.mark.parametrize(
    ("optimizer", "numbers"),
    [
        ({"name": "sgd", "momentum": 0.0}, 0),
        ({"name": "sgd"}, 1),
        ({"name": "lion"}, 1),
        ({"name": "adagrad"}, 1),
        ({"name": "muon"}, 1),
        ({"name": "rmsprop"}, 2),
        ({"name": "rmsprop", "momentum": 0.0}, 1),
        ({"name": "adam"}, 2),
    ],
)
def test_each_optimizer_keeps_its_own_states(optimizer: dict[str, Any], numbers: int) -> None:
    recipe = recipe_of(optimizer=optimizer, zero={"stage": 0})
    memory = estimate_memory(recipe, SMALL, data_mesh(1), micro_batch=1)
    assert memory.optimizer_bytes == (4 + 4 * numbers) * 1024


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_a_higher_stage_never_needs_more_for_model_states(precision: str, ranks: int) -> None:
    def total(stage: int) -> int:
        # What stage 3 gathers comes on top of what it shards; it is not part of this.
        recipe = recipe_of(train={"precision": precision}, zero={"stage": stage, **NOTHING_GATHERED})
        bare = dataclasses.replace(GPT2, largest_block_parameters=0)
        return sum(states(estimate_memory(recipe, bare, data_mesh(ranks), micro_batch=1)))

    totals = [total(stage) for stage in (0, 1, 2, 3)]
    assert totals == sorted(totals, reverse=True)
    assert len(set(totals)) == 4


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_more_ranks_never_need_more_memory_each(stage: int) -> None:
    recipe = recipe_of(zero={"stage": stage})
    needed = [estimate_memory(recipe, GPT2, data_mesh(n), micro_batch=1).device_bytes for n in (1, 2, 4, 8, 64)]
    assert needed == sorted(needed, reverse=True)
    assert len(set(needed)) == (1 if stage == 0 else 5)


def test_what_is_offloaded_counts_for_the_host() -> None:
    held = estimate_memory(recipe_of(zero={"stage": 3}), SMALL, data_mesh(4), micro_batch=1)
    zero = {"stage": 3, "offload_optimizer": True, "offload_parameters": True}
    moved = estimate_memory(recipe_of(zero=zero), SMALL, data_mesh(4), micro_batch=1)
    gathered = 2 * 1024
    assert (moved.optimizer_bytes, moved.parameters_bytes) == (0, gathered)
    assert moved.offloaded_bytes == held.optimizer_bytes + held.parameters_bytes - gathered
    assert held.device_bytes - moved.device_bytes == moved.offloaded_bytes


def test_activations_and_logits_by_hand() -> None:
    """Korthikanti et al. 2022: 34·T·B·d bytes a block; logits in bf16 and fp32, each with its gradient."""
    tokens = 2 * 1024
    block = 34 * tokens * 768

    def of(**model: Any) -> Memory:
        data = {"isolate_documents": False}
        return estimate_memory(recipe_of(model=model, data=data), GPT2, data_mesh(1), micro_batch=2)

    logits = of().logits_bytes
    assert logits == 2 * tokens * 50257 * (2 + 4)
    # The block whose backward pass runs has gradients beside its activations, and fewer than the logits are.
    assert of().activations_bytes == 12 * block
    assert of(attention="eager").activations_bytes == 12 * (block + 5 * 12 * tokens * 1024)
    assert of(logits_chunk=1).activations_bytes == 12.5 * block - 2 * 50257 * (2 + 4)
    few = of(activation_checkpointing=True, logits_chunk=1)
    assert few.activations_bytes == 12 * 2 * tokens * 768 + 1.5 * block - 2 * 50257 * (2 + 4)
    # More logits than a block keeps: they are gone when it is recomputed.
    assert of(activation_checkpointing=True).activations_bytes == 12 * 2 * tokens * 768


def test_ranks_of_a_run_do_not_share_a_gpu() -> None:
    half = {"workers": 2, "gpus_per_worker": 0.5}
    with pytest.raises(RecipeError, match="NCCL refuses two ranks of a run on one GPU"):
        plan_of(size=2, gpu=True, cluster=half)
    assert plan_of(size=2, gpu=False, cluster=half).world.size == 2
    assert plan_of(size=1, gpu=True, cluster={**half, "workers": 1}).world.size == 1
    assert plan_of(size=2, gpu=True, cluster={**half, "gpus_per_worker": 0.75}).world.size == 2
