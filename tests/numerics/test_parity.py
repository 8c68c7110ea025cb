"""The same training whatever the ZeRO stage, ranks and accumulation; and the same as plain PyTorch."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from shardyard.engine.assemble import assemble
from shardyard.engine.checkpoint.weights import consolidated_weights
from shardyard.engine.mesh import make_mesh
from shardyard.engine.step import train_step
from shardyard.engine.world import Rank
from shardyard.recipe.schema import Recipe
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
STEPS = 20
GOLDEN = Path(__file__).parent / "golden" / "gpt2-tiny.txt"


def curves(rank: Rank, recipes: list[Recipe], runs: Path) -> list[list[float]]:
    """Losses of the first 20 steps of each recipe, and nothing else of a run."""
    return [_curve(rank, recipe, runs) for recipe in recipes]


def _curve(rank: Rank, recipe: Recipe, runs: Path) -> list[float]:
    job = tiny_job(recipe, runs, world_size=rank.world_size)
    session = assemble(recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    losses = []
    for step in range(STEPS):
        session.learning_rate.set(session.factor(step))
        result = train_step(session.engine, session.objective, session.next_batch(), session.mesh)
        losses.append(result.loss)
    session.close()
    return losses


def _agree(ours: list[float], reference: list[float]) -> None:
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, reference, strict=True))
    assert worst < TOLERANCE, f"relative difference {worst:.2e}\n{ours}\n{reference}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


FAMILIES = ("gpt2", "llama", "qwen2", "mixtral")


@pytest.fixture(scope="module")
def measured(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int, int], list[float]]:
    """(family, stage, world size) → losses; one set of processes a world size, because starting them takes longest."""
    runs = tmp_path_factory.mktemp("runs")
    cases = [(family, stage) for family in FAMILIES for stage in range(4)]
    found = {}
    for world_size in (1, 2):
        recipes = [
            tiny_recipe(corpus, family=family, zero={"stage": stage}, cluster={"workers": world_size})
            for family, stage in cases
        ]
        for case, losses in zip(cases, run_ranks(world_size, curves, recipes, runs)[0], strict=True):
            found[*case, world_size] = losses
    return found


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_stages_and_ranks_agree(
    measured: dict[tuple[str, int, int], list[float]], family: str, stage: int, world_size: int
) -> None:
    reference = measured[family, 0, 1]
    assert abs(reference[0] - math.log(257)) < 0.1, "a first loss far from ln(vocabulary) is no sound initialisation"
    assert reference[-1] < reference[0] - 1
    _agree(measured[family, stage, world_size], reference)


def test_accumulation_shares_one_golden_list(corpus: Path, tmp_path: Path) -> None:
    """8 rows at once and 4 times 2 give the losses that are written down."""
    recipes = [tiny_recipe(corpus, train={"micro_batch": rows}, zero={"stage": 2}) for rows in (8, 2)]
    golden = [float(line) for line in GOLDEN.read_text().split()]
    for losses in run_ranks(1, curves, recipes, tmp_path)[0]:
        _agree(losses, golden)


def with_batches(rank: Rank, recipe: Recipe, runs: Path) -> dict[str, Any]:
    """Losses of a run, with what a reference needs to repeat it: initial weights and every batch."""
    job = tiny_job(recipe, runs, world_size=rank.world_size)
    session = assemble(recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    weights = {
        name: tensor.clone() for name, tensor in (consolidated_weights(session.engine, session.mesh) or {}).items()
    }
    losses, batches = [], []
    for step in range(STEPS):
        session.learning_rate.set(session.factor(step))
        batch = session.next_batch()
        batches.append((batch["input_ids"], batch["labels"], batch["position_ids"]))
        losses.append(train_step(session.engine, session.objective, batch, session.mesh).loss)
    session.close()
    return {"losses": losses, "batches": batches, "weights": weights, "config": session.config}


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_plain_pytorch_agrees(corpus: Path, tmp_path: Path, family: str) -> None:
    """A loop with transformers and torch alone: each document by itself, AdamW, clipping, the schedule by formula."""
    recipe = tiny_recipe(corpus, family=family, zero={"stage": 2}, cluster={"workers": 1})
    run = run_ranks(1, with_batches, recipe, tmp_path)[0]
    model = AutoModelForCausalLM.from_config(run["config"])
    model.load_state_dict(run["weights"])
    model.train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}], betas=(0.9, 0.95), eps=1e-8
    )
    losses = []
    for step, batch in enumerate(run["batches"]):
        progress = (step - 5) / (STEPS - 5)
        rate = (step + 1) / 5 if step < 5 else 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * rate
        loss = _mean_over_documents(model, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    _agree(run["losses"], losses)


def _mean_over_documents(
    model: torch.nn.Module, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """Mean loss over all targets, with every document of every row put through the model on its own."""
    total, count = torch.zeros(()), 0
    for row, targets, positions in zip(input_ids, labels, position_ids, strict=True):
        starts = [*torch.nonzero(positions == 0).flatten().tolist(), len(row)]
        for first, last in pairwise(starts):
            logits = model(input_ids=row[None, first:last]).logits[0]
            total = total + functional.cross_entropy(logits, targets[first:last], reduction="sum")
            count += int((targets[first:last] != -100).sum())
    return total / count
