"""Runs with bitsandbytes' AdamW in 8 bits: a plain loop with it, AdamW, and resumed runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from shardyard.engine.assemble import assemble
from shardyard.engine.checkpoint.weights import consolidated_weights
from shardyard.engine.mesh import make_mesh
from shardyard.engine.run import Job, run_rank
from shardyard.engine.step import train_step
from shardyard.engine.world import Rank
from shardyard.errors import CheckpointError
from shardyard.optim.groups import parameter_groups
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder, read_metrics
from support.ranks import run_ranks
from support.tiny import CONFIGS, tiny_job, tiny_recipe, write_corpus

bitsandbytes = pytest.importorskip("bitsandbytes")
pytestmark = pytest.mark.slow

STEPS, HALF, SHORT, RATE = 20, 10, 5, 3e-3
EIGHT = {"name": "adamw_8bit", "lr": RATE, "weight_decay": 0.1}
# Precision, ZeRO stage, ranks of runs that pause and go on.
RESUMED = [("fp32", 0, 2), ("bf16", 1, 2), ("fp32", 2, 2), ("bf16", 3, 2)]


def recipe_of(corpus: Path, precision: str, stage: int, ranks: int, **sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "optimizer": EIGHT,
        "train": {"precision": precision, "steps": STEPS, "gradient_clipping": 0.0},
        "schedule": {"name": "constant", "warmup": 0},
        "zero": {"stage": stage},
        "checkpoint": {"every": HALF},
        "cluster": {"workers": ranks},
    }
    return tiny_recipe(corpus, **{**base, **sections})


@dataclass(frozen=True)
class Both:
    """Weights and losses of a run and of a plain loop over its batches."""

    ours: dict[str, Tensor]
    plain: dict[str, Tensor]
    start: dict[str, Tensor]
    losses: list[float]


def beside_plain(rank: Rank, recipes: list[Recipe], runs: Path) -> list[Both]:
    return [_beside_plain(rank, recipe, runs) for recipe in recipes]


def _beside_plain(rank: Rank, recipe: Recipe, runs: Path) -> Both:
    job = tiny_job(recipe, runs, world_size=rank.world_size)
    session = assemble(recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    start = {name: one.clone() for name, one in (consolidated_weights(session.engine, session.mesh) or {}).items()}
    model = AutoModelForCausalLM.from_config(session.config)
    model.load_state_dict(start)
    model.train()
    groups: Any = parameter_groups(model, 0.1)
    members = [group["params"] for group in groups]
    if recipe.zero.stage:  # A rank's share is flat, and so are the blocks.
        for group, inner in zip(groups, members, strict=True):
            group["params"] = [nn.Parameter(torch.cat([one.detach().flatten() for one in inner]))]
    optimizer = bitsandbytes.optim.AdamW8bit(groups, lr=RATE, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(STEPS):
        session.learning_rate.set(session.factor(step))
        batch = session.next_batch()
        losses.append(train_step(session.engine, session.objective, batch, session.mesh).loss)
        (part,) = batch.micro_batches
        targets = session.objective.counts(part)["loss"]
        (session.objective.measure(model, part).losses["loss"] * torch.tensor(1 / targets)).backward()
        if recipe.zero.stage:
            _step_of_flat(optimizer, groups, members)
        else:
            optimizer.step()
        model.zero_grad(set_to_none=True)
    ours = consolidated_weights(session.engine, session.mesh) or {}
    kept = {name: one.clone() for name, one in ours.items()}
    session.close()
    return Both(kept, {name: one.detach().clone() for name, one in model.state_dict().items()}, start, losses)


def _step_of_flat(optimizer: Any, groups: Any, members: list[list[nn.Parameter]]) -> None:
    for group, inner in zip(groups, members, strict=True):
        group["params"][0].grad = torch.cat([one.grad.flatten() for one in inner])  # type: ignore[union-attr]
    optimizer.step()
    for group, inner in zip(groups, members, strict=True):
        parts = group["params"][0].detach().split([one.numel() for one in inner])
        for one, part in zip(inner, parts, strict=True):
            one.data.copy_(part.view(one.shape))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


STAGES = (0, 2, 3)


@pytest.fixture(scope="module")
def alone(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Both]:
    # Llama: the activation of GPT-2 is another operation here, and a last digit may cross to another level.
    recipes = [recipe_of(corpus, "fp32", stage, 1, family="llama") for stage in STAGES]
    found = run_ranks(1, beside_plain, recipes, tmp_path_factory.mktemp("alone"))[0]
    return dict(zip(STAGES, found, strict=True))


def distance(both: Both) -> float:
    """The largest difference from the plain loop, in parts of the largest change since the start."""
    moved = max(float((both.ours[name] - one).abs().max()) for name, one in both.start.items())
    assert moved > STEPS * RATE / 2
    return max(float((both.ours[name] - both.plain[name]).abs().max()) for name in both.ours) / moved


@pytest.mark.parametrize("stage", [0, 2])
def test_weights_are_those_of_a_plain_loop(alone: dict[int, Both], stage: int) -> None:
    assert distance(alone[stage]) <= 1e-6


def test_stage_3_follows_until_a_last_digit_crosses_to_another_level(alone: dict[int, Both]) -> None:
    """Its gradients are rounded elsewhere. The third loss is the first that other blocks would change."""
    assert alone[3].losses[:3] == alone[2].losses[:3]
    assert distance(alone[3]) < 0.1


def replayed(rank: Rank, recipes: list[Recipe], runs: Path) -> list[tuple[int, float]]:
    """Of each recipe: updates of shares, and the largest difference from bitsandbytes alone on the same gradients."""
    return [_replayed(rank, recipe, runs) for recipe in recipes]


def _replayed(rank: Rank, recipe: Recipe, runs: Path) -> tuple[int, float]:
    job = tiny_job(recipe, runs, world_size=rank.world_size)
    session = assemble(recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    found = _beside_its_twin(getattr(session.engine.optimizer, "optimizer", session.engine.optimizer))
    for step in range(SHORT):
        session.learning_rate.set(session.factor(step))
        train_step(session.engine, session.objective, session.next_batch(), session.mesh)
    session.close()
    return len(found), max(found)


def _beside_its_twin(inner: Any) -> list[float]:
    """Update copies of the optimizer's shares with its gradients, after each of its steps; the list of differences."""
    twins: dict[int, tuple[nn.Parameter, Any]] = {}
    found: list[float] = []
    plain = inner.step

    def step(*given: Any, **named: Any) -> Any:
        pairs = []
        for group in inner.param_groups:
            for share in (one for one in group["params"] if one.grad is not None):
                if id(share) not in twins:
                    own = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
                    twin = nn.Parameter(share.detach().clone())
                    twins[id(share)] = (twin, bitsandbytes.optim.AdamW8bit([twin], **own))
                twins[id(share)][0].grad = share.grad.detach().clone()
                pairs.append((share, *twins[id(share)]))
        result = plain(*given, **named)
        for share, twin, optimizer in pairs:
            optimizer.step()
            found.append(float((share.detach() - twin.detach()).abs().max()))
        return result

    inner.step = step
    return found


def test_every_stage_updates_its_shares_as_bitsandbytes_does(corpus: Path, tmp_path: Path) -> None:
    """Losses of stages differ because blocks are cut elsewhere; nothing else does."""
    recipes = [recipe_of(corpus, "fp32", stage, 2) for stage in (1, 2, 3)]
    for of_rank in run_ranks(2, replayed, recipes, tmp_path):
        # Weights with and without decay.
        assert of_rank == [(2 * SHORT, 0.0)] * len(recipes)


def jobs_in_order(rank: Rank, jobs: list[Job]) -> list[str]:
    return [run_rank(job, rank) for job in jobs]


def refused(rank: Rank, job: Job) -> str:
    with pytest.raises(CheckpointError) as caught:
        run_rank(job, rank)
    return str(caught.value)


@dataclass(frozen=True)
class Runs:
    """By case: the run that never paused and the one that did. AdamW's. Two whose ranks have rows of their own, and
    parts of all rows. What a resume at another stage said."""

    pairs: dict[tuple[str, int, int], tuple[RunFolder, RunFolder]]
    adamw: RunFolder
    shared: tuple[RunFolder, RunFolder]
    refusals: list[str]


@pytest.fixture(scope="module")
def runs(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("runs")
    straight, halved = {}, {}
    for case in RESUMED:
        recipe = recipe_of(corpus, *case)
        beside = recipe.model_copy(update={"checkpoint": recipe.checkpoint.model_copy(update={"background": True})})
        straight[case] = tiny_job(recipe, folder, world_size=case[2])
        halved[case] = tiny_job(beside, folder, world_size=case[2], until=HALF)
    full = recipe_of(corpus, "fp32", 2, 2, optimizer={**EIGHT, "name": "adamw"})
    adamw = tiny_job(full, folder, world_size=2)
    llama: dict[str, Any] = {"family": "llama", "model": {"config": {**CONFIGS["llama"], "num_key_value_heads": 2}}}
    shared = [
        tiny_job(recipe_of(corpus, "fp32", 2, 2, parallel=axes, **llama), folder, world_size=2)
        for axes in ({}, {"sequence": 2})
    ]
    outcomes = run_ranks(2, jobs_in_order, [*straight.values(), *halved.values(), adamw, *shared])[0]
    assert set(outcomes) == {"finished", "paused"}
    paused = halved[RESUMED[2]]
    moved = paused.recipe.model_copy(update={"zero": paused.recipe.zero.model_copy(update={"stage": 3})})
    elsewhere = tiny_job(moved, folder, world_size=2)
    refusals = run_ranks(2, refused, replace(paused, recipe=moved, plan=elsewhere.plan, until=None))
    assert set(run_ranks(2, jobs_in_order, [replace(job, until=None) for job in halved.values()])[0]) == {"finished"}
    pairs = {case: (straight[case].folder, halved[case].folder) for case in RESUMED}
    return Runs(pairs, adamw.folder, (shared[0].folder, shared[1].folder), refusals)


def losses(folder: RunFolder) -> list[float]:
    return [line["train/loss"] for line in read_metrics(folder.metrics)]


@pytest.mark.parametrize("case", RESUMED, ids=lambda case: f"{case[0]}-zero{case[1]}-{case[2]}ranks")
def test_resuming_changes_no_bit(runs: Runs, case: tuple[str, int, int]) -> None:
    straight, resumed = runs.pairs[case]
    assert len(losses(straight)) == STEPS
    assert losses(straight) == losses(resumed)
    ours, theirs = (load_file(one.path / "final" / "model.safetensors") for one in (straight, resumed))
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_the_curve_is_near_that_of_32_bits(runs: Runs) -> None:
    full = losses(runs.adamw)
    curve = losses(runs.pairs["fp32", 2, 2][0])
    assert full[0] - full[-1] > 1
    assert curve != full
    worst = max(abs(a - b) / b for a, b in zip(curve, full, strict=True))
    assert worst < 0.02, f"{worst:.3f}\n{curve}\n{full}"


def test_ranks_may_share_rows(runs: Runs) -> None:
    """Rounding errors cross the borders of 256 levels: not to the last digits."""
    own, parts = (losses(folder) for folder in runs.shared)
    assert own[0] == pytest.approx(parts[0], rel=1e-6)
    assert own == pytest.approx(parts, rel=2e-3)


def test_another_stage_is_refused_with_the_reason(runs: Runs) -> None:
    for text in runs.refusals:
        assert "optimizer states of this checkpoint are in 8 bits" in text
        assert "resume with the number of workers and the zero.stage that wrote it" in text
