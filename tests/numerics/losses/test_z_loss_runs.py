"""Runs with a z-loss against a plain loop with transformers and torch: one rank and two, whole logits and parts."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from shardyard.engine.assemble import assemble
from shardyard.engine.checkpoint.weights import consolidated_weights
from shardyard.engine.mesh import make_mesh
from shardyard.engine.step import train_step
from shardyard.engine.world import Rank
from shardyard.objectives.base import IGNORED
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Recipe
from support.ranks import run_ranks
from support.tiny import CONFIGS, tiny_job

pytestmark = pytest.mark.slow

STEPS, RATE, WEIGHT, SMOOTHING = 20, 0.1, 0.02, 0.1
AUTO: dict[str, Any] = {
    "causal_lm": AutoModelForCausalLM,
    "masked_lm": AutoModelForMaskedLM,
    "seq2seq": AutoModelForSeq2SeqLM,
}
# Steps of plain gradient descent: Adam would divide rounding errors of small gradients by their size.
PLAIN = {"name": "sgd", "lr": RATE, "momentum": 0.0, "weight_decay": 0.0, "betas": [0.9, 0.95]}
# Ranks → what differs from the whole logits of stage 0.
TWO: dict[str, dict[str, Any]] = {
    "stage 1, whole": {"zero": {"stage": 1}},
    "stage 3, in parts": {"zero": {"stage": 3}, "model": {"logits_chunk": 5}},
    "a row on both ranks": {"parallel": {"sequence": 2}, "model": {"logits_chunk": 7}},
}
CASES = [(objective, name) for objective in AUTO for name in TWO if objective == "causal_lm" or "row" not in name]


@dataclass(frozen=True)
class Run:
    """What each step measured, and what a reference needs to repeat it on one rank."""

    losses: list[float]
    squares: list[float]
    batches: list[dict[str, Tensor]]
    weights: dict[str, Tensor]
    config: Any


def recipe_of(folder: Path, objective: str, workers: int, **changes: Any) -> Recipe:
    case = importlib.import_module(f"support.objectives.{objective}")
    fields = case.recipe_fields(case.write_data(folder))
    if objective == "causal_lm":
        fields["model"] |= {"family": "llama", "config": {**CONFIGS["llama"], "num_key_value_heads": 2}}
        fields["data"]["isolate_documents"] = False
    fields |= {
        "optimizer": PLAIN,
        "schedule": {"name": "constant", "warmup": 0},
        "loss": {"label_smoothing": SMOOTHING, "z_loss": WEIGHT},
        "train": {**fields["train"], "steps": STEPS, "gradient_clipping": 0.0},
        "zero": {"stage": 0},
        "cluster": {"workers": workers},
    }
    return parse_recipe(fields | changes | {"model": {**fields["model"], **changes.get("model", {})}})


def runs(rank: Rank, recipes: list[Recipe], folder: Path) -> list[Run]:
    return [_run(rank, recipe, folder) for recipe in recipes]


def _run(rank: Rank, recipe: Recipe, folder: Path) -> Run:
    job = tiny_job(recipe, folder, world_size=rank.world_size)
    session = assemble(recipe, job.plan, job.folder, make_mesh(job.plan.mesh, rank))
    held = consolidated_weights(session.engine, session.mesh) or {}
    weights = {name: tensor.clone() for name, tensor in held.items()}
    losses, squares, batches = [], [], []
    for step in range(STEPS):
        session.learning_rate.set(session.factor(step))
        batch = session.next_batch()
        assert len(batch.micro_batches) == 1
        batches.append(batch.micro_batches[0])
        result = train_step(session.engine, session.objective, batch, session.mesh)
        losses.append(result.loss)
        squares.append(session.objective.train_metrics(result.totals)["train/z_loss"])
    session.close()
    return Run(losses, squares, batches, weights, session.config)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Run]:
    folder = tmp_path_factory.mktemp("z-loss")
    one = [recipe_of(folder, objective, 1) for objective in AUTO]
    found = dict(zip([(name, "one") for name in AUTO], run_ranks(1, runs, one, folder)[0], strict=True))
    two = [recipe_of(folder, objective, 2, **TWO[name]) for objective, name in CASES]
    return found | dict(zip(CASES, run_ranks(2, runs, two, folder)[0], strict=True))


@pytest.fixture(scope="module")
def reference(measured: dict[tuple[str, str], Run]) -> dict[str, tuple[list[float], list[float]]]:
    """The losses and the means of (log Z)² of a plain loop, in fp64."""
    return {objective: _plain(objective, measured[objective, "one"]) for objective in AUTO}


def _plain(objective: str, run: Run) -> tuple[list[float], list[float]]:
    model = AUTO[objective].from_config(run.config).double()
    model.load_state_dict({name: weight.double() for name, weight in run.weights.items()}, strict=False)
    model.train()
    losses, squares = [], []
    for batch in run.batches:
        inputs = {name: value for name, value in batch.items() if name not in ("labels", "reference", "source_text")}
        if objective == "causal_lm":
            inputs["attention_mask"] = torch.ones_like(batch["input_ids"])  # all tokens before, of any document
        logits, labels = model(**inputs).logits, batch["labels"]
        kept = labels != IGNORED
        # By its definition: the logarithm of a sum.
        square = (logits[kept].exp().sum(-1).log() ** 2).mean()
        loss = functional.cross_entropy(logits[kept], labels[kept], label_smoothing=SMOOTHING) + WEIGHT * square
        model.zero_grad(set_to_none=True)
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= RATE * weight.grad
        losses.append(loss.item())
        squares.append(square.item())
    return losses, squares


@pytest.mark.parametrize(("objective", "name"), [*((objective, "one") for objective in AUTO), *CASES])
def test_losses_are_those_of_a_plain_loop(
    measured: dict[tuple[str, str], Run],
    reference: dict[str, tuple[list[float], list[float]]],
    objective: str,
    name: str,
) -> None:
    run, (losses, squares) = measured[objective, name], reference[objective]
    assert WEIGHT * squares[0] > 0.05 * losses[0], "too small to be missed"
    assert abs(squares[-1] - squares[0]) > 0.5
    worst = [
        max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in ((run.losses, losses), (run.squares, squares))
    ]
    assert max(worst) < 2e-6, f"relative differences {worst}\n{run.losses}\n{losses}\n{run.squares}\n{squares}"
