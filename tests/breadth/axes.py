"""Every family with a tensor-parallel plan, or tested on shared rows, against one rank: a table for docs/large/axes.md.

`python -m breadth.axes` on two ranks; `make breadth` runs it, in two minutes on two cores. 6 steps in fp32 with
clipping, at ZeRO stages 1 and 3. It writes tests/breadth/axes.json, from which the page is made, and ends with 1 if a
family differs from one rank by more than MOST.
"""

from __future__ import annotations

import json
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from shardyard.engine.assemble import assemble
from shardyard.engine.mesh import make_mesh
from shardyard.engine.run import Job
from shardyard.engine.step import train_step
from shardyard.engine.world import Rank
from shardyard.recipe.tensor_plans import SEQUENCE_FAMILIES, TENSOR_PLANS
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

PAGE = Path(__file__).parents[2] / "docs" / "large" / "axes.md"
RESULTS = Path(__file__).with_name("axes.json")
STEPS = 6
# Differences are of one rounding; a wrong sum or a wrong gradient shows from 1e-3 on.
MOST = 1e-4
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
WITHOUT = {
    **dict.fromkeys(
        ("cohere", "granite", "olmo2", "olmo3", "phi", "phi3", "qwen2", "smollm3", "stablelm"), ("head_dim",)
    ),
    "gpt_neox": ("head_dim", "num_key_value_heads"),
    "starcoder2": ("head_dim",),
}
_ROUTED = {
    **{name: size for name, size in SIZES.items() if name != "head_dim"},
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
OWN: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 32, "n_positions": 64},
    "mixtral": {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_ROUTED, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**_ROUTED, "head_dim": 8},
}


REFUSED = """
## What is refused, with the evidence

DeepSpeed 0.19.8, tried on 2026-11-30 on gloo ranks in fp32 with the rules of the recipe switched off:

- **GPT-2 along `tensor`.** Its projections are transformers' `Conv1D`, whose weights are [inputs, outputs]. AutoTP
  with patterns for them makes its layer for `nn.Linear` of each and stops at the start: `split_with_sizes expects
  split_sizes to sum exactly to 96`, `but got split_sizes=[16, 16]` (two ranks, width 32). Its `conv_LinearLayer`,
  chosen only where AutoTP is given the class of GPT-2's blocks, cuts the outputs by the number of inputs, inherits
  the product with the transposed weight from `LinearLayer`, and does not know that GPT-2's `c_attn` has queries, keys
  and values in one matrix (read in its source). A GPT that shall be split is a `gpt_neox` or a `llama`; ZeRO-3 shards
  GPT-2.
- **`expert` beside `tensor`.** With the groups of the mesh DeepSpeed stops: `AutoEP does not currently support tensor
  model parallelism from mpu`. With groups that it makes itself, an earlier try had losses 5e-4 from one rank's after
  five steps, at stages 1 and 2. Alone, each axis gives the losses of one rank: 1.8e-6 apart after five steps of SGD
  with `tensor: 2`, 1.1e-6 with `expert: 4` (mixtral, 4 ranks, stage 1).
"""


def config(family: str) -> dict[str, Any]:
    """A tiny configuration of a family."""
    left_out = WITHOUT.get(family, ())
    return OWN.get(family) or {name: size for name, size in SIZES.items() if name not in left_out}


def curves(rank: Rank, jobs: dict[str, Job]) -> dict[str, list[tuple[float, float]]]:
    """Loss and gradient norm of the first steps of each job."""
    found = {}
    for name, job in jobs.items():
        session = assemble(job.recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
        session.learning_rate.set(1.0)
        results = [
            train_step(session.engine, session.objective, session.next_batch(), session.mesh) for _ in range(STEPS)
        ]
        found[name] = [(result.loss, result.grad_norm or 0.0) for result in results]
        session.close()
    return found


def cases() -> list[tuple[str, str, int]]:
    """Axis, family and ZeRO stage of what is compared."""
    of_axes = {"tensor": TENSOR_PLANS, "sequence": SEQUENCE_FAMILIES}
    return [
        (axis, family, stage) for axis, families in of_axes.items() for family in sorted(families) for stage in (1, 3)
    ]


def differences() -> dict[tuple[str, str, int], float]:
    """(axis, family, stage) → the largest relative difference of losses and gradient norms."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus = write_corpus(folder)

        def job(family: str, ranks: int, stage: int, **parallel: int) -> Job:
            recipe = tiny_recipe(
                corpus,
                model={"family": family, "config": config(family), "dropout": 0.0},
                train={"gradient_clipping": 1.0},
                zero={"stage": stage},
                parallel=parallel,
                cluster={"workers": ranks},
            )
            return tiny_job(recipe, folder, world_size=ranks)

        alone = run_ranks(1, curves, {family: job(family, 1, 0) for family in {family for _, family, _ in cases()}})[0]
        jobs = {f"{axis} {family} {stage}": job(family, 2, stage, **{axis: 2}) for axis, family, stage in cases()}
        shared = run_ranks(2, curves, jobs)
    found = {}
    for axis, family, stage in cases():
        pairs = [
            (ours, reference)
            for of_rank in shared
            for step, reference_step in zip(of_rank[f"{axis} {family} {stage}"], alone[family], strict=True)
            for ours, reference in zip(step, reference_step, strict=True)
        ]
        found[axis, family, stage] = max(abs(ours - reference) / abs(reference) for ours, reference in pairs)
    return found


def results(found: dict[tuple[str, str, int], float]) -> dict[str, Any]:
    """What is kept: the day, the versions, and a line for each case."""
    packages = {name: metadata.version(name) for name in ("torch", "deepspeed", "transformers")}
    lines = [
        {"family": family, "axis": axis, "stage": stage, "difference": difference}
        for (axis, family, stage), difference in sorted(found.items())
    ]
    return {"date": f"{datetime.now(UTC):%Y-%m-%d}", "packages": packages, "steps": STEPS, "cases": lines}


def page(kept: dict[str, Any]) -> str:
    """The table."""
    found = {(one["axis"], one["family"], one["stage"]): one["difference"] for one in kept["cases"]}
    families = sorted({family for _, family, _ in found})
    columns = [(axis, stage) for axis in ("tensor", "sequence") for stage in (1, 3)]
    rows = [
        f"| {family} | "
        + " | ".join(
            f"{found[axis, family, stage]:.0e}" if (axis, family, stage) in found else "refused"
            for axis, stage in columns
        )
        + " |\n"
        for family in families
    ]
    heads = " | ".join(f"{axis} 2, stage {stage}" for axis, stage in columns)
    packages = ", ".join(f"{name} {version}" for name, version in kept["packages"].items())
    return (
        "# Families along the axes\n\n"
        f"Written by `make breadth` on {kept['date']} ({packages}): the largest relative difference of losses\n"
        f"and gradient norms between two gloo ranks and one, fp32, {kept['steps']} steps with clipping, models of two "
        "layers.\n\n"
        f"| family | {heads} |\n|---|---|---|---|---|\n" + "".join(rows) + REFUSED
    )


def main() -> int:
    """The exit code: 1 if a family differs."""
    kept = results(differences())
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(page(kept), encoding="utf-8")
    wrong = [one for one in kept["cases"] if not one["difference"] < MOST]
    for one in wrong:
        sys.stderr.write(f"{one['family']}, {one['axis']} 2, stage {one['stage']}: differs by {one['difference']}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
