"""Direct preference optimisation on models, against the paper's formula worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.formats.preferences import make as make_rows
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.models.frozen import frozen_causal_lm
from shardyard.objectives.base import Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.preference.loss import both, make
from shardyard.recipe.schema import Data, Preference, Source
from support.pretrained import write_pretrained

PAIRS = (
    {"prompt": "one?", "chosen": "1", "rejected": "I have no idea"},
    {"prompt": "two?", "chosen": "it is 2", "rejected": "3"},
    {"prompt": "?", "chosen": "!", "rejected": "."},
)
BETA = 0.5


@pytest.fixture
def models(tmp_path: Path) -> tuple[Any, Any]:
    """Policy and reference, of other weights."""
    folders = [write_pretrained(tmp_path / str(seed), n_positions=96, seed=seed) for seed in (1, 2)]
    policy, reference = (
        frozen_causal_lm(str(folder), vocabulary=257, precision="fp32", device=torch.device("cpu"))
        for folder in folders
    )
    return policy.requires_grad_(True), reference


def batch(pairs: Any = PAIRS) -> dict[str, Tensor]:
    data = Data(sequence_length=64, train=[Source(path="x.jsonl")])
    rows = make_rows(FormatInputs(data, load_tokenizer("bytes")))
    return rows.collate([rows.row(pair, np.random.default_rng(0)) for pair in pairs])


def log_probability(model: Any, pair: dict[str, str], answer: str) -> float:
    """Of an answer with its end, token by token, without a batch."""
    end = load_tokenizer("bytes").eos_token_id
    prompt = [end, *f"User: {pair['prompt']}\nAssistant:".encode()]
    tokens = [*f" {pair[answer]}".encode(), end]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + tokens])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + at, token]) for at, token in enumerate(tokens))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_the_papers(models: tuple[Any, Any], smoothing: float) -> None:
    policy, reference = models
    objective = make(ObjectiveInputs(preference=Preference(beta=BETA, label_smoothing=smoothing), frozen=reference))
    loss, wins, margins = 0.0, 0, 0.0
    for pair in PAIRS:
        gains = {
            a: log_probability(policy, pair, a) - log_probability(reference, pair, a) for a in ("chosen", "rejected")
        }
        margin = BETA * (gains["chosen"] - gains["rejected"])
        loss -= (1 - smoothing) * -math.log1p(math.exp(-margin)) + smoothing * -math.log1p(math.exp(margin))
        wins, margins = wins + (margin > 0), margins + margin
    rows = batch()
    measured = objective.measure(policy, rows)
    assert float(measured.losses["loss"]) == pytest.approx(loss, rel=1e-4)
    assert objective.counts(rows) == {"loss": 3}
    totals = Totals({"loss": loss}, measured.observed, objective.counts(rows))
    expected = {"accuracy": wins / 3, "margin": pytest.approx(margins / 3, rel=1e-4)}
    assert objective.metrics(totals) == expected
    assert objective.train_metrics(totals) == {f"train/{name}": value for name, value in expected.items()}
    assert 0 < wins < 3, "the case tells nothing of accuracy"


def test_a_policy_that_is_its_reference_loses_log_2(models: tuple[Any, Any]) -> None:
    policy, _ = models
    objective = make(ObjectiveInputs(preference=Preference(beta=BETA), frozen=policy))
    measured = objective.measure(policy, batch())
    assert float(measured.losses["loss"]) / 3 == pytest.approx(math.log(2), rel=1e-6)
    assert float(measured.observed["preferred"]) == 0


def test_a_step_raises_the_chosen_and_lowers_the_rejected(models: tuple[Any, Any]) -> None:
    policy, reference = models
    objective = make(ObjectiveInputs(preference=Preference(beta=BETA), frozen=reference))
    before = objective.measure(policy, batch())
    before.losses["loss"].backward()
    assert all(parameter.grad is None for parameter in reference.parameters())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 1e-4 * parameter.grad
    after = objective.measure(policy, batch())
    assert float(after.observed["margin"]) > float(before.observed["margin"])


def test_answers_of_unlike_lengths_share_a_pass() -> None:
    rows = batch()
    joined = both(rows)
    length = max(rows["chosen_labels"].shape[1], rows["rejected_labels"].shape[1])
    assert {tuple(tensor.shape) for tensor in joined.values()} == {(6, length)}
    shorter = rows["chosen_labels"].shape[1]
    assert shorter < length
    assert (joined["labels"][:3, shorter:] == -100).all()
    assert (joined["attention_mask"][:3, shorter:] == 0).all()
    assert torch.equal(joined["input_ids"][3:], rows["rejected_input_ids"])


def test_the_log_probabilities_of_the_sequences_of_an_answer_are_added(models: tuple[Any, Any]) -> None:
    policy, reference = models
    objective = make(ObjectiveInputs(preference=Preference(beta=BETA), frozen=reference))
    first, second, third = (batch([pair]) for pair in PAIRS)
    length = max(one["chosen_labels"].shape[1] for one in (first, second))
    joined = {
        name: torch.cat(
            [functional.pad(one[name], (0, length - one[name].shape[1]), value=fill) for one in (first, second)]
        )
        for name, fill in (("chosen_input_ids", 0), ("chosen_attention_mask", 0), ("chosen_labels", -100))
    }
    pair = {**third, **joined, "chosen_pairs": torch.ones(2, 1, dtype=torch.bool)}
    assert objective.counts(pair) == {"loss": 1}
    chosen = sum(
        log_probability(policy, one, "chosen") - log_probability(reference, one, "chosen") for one in PAIRS[:2]
    )
    rejected = log_probability(policy, PAIRS[2], "rejected") - log_probability(reference, PAIRS[2], "rejected")
    measured = objective.measure(policy, pair)
    assert float(measured.observed["margin"]) == pytest.approx(BETA * (chosen - rejected), rel=1e-4)


def test_how_rows_are_put_together_changes_nothing(models: tuple[Any, Any]) -> None:
    policy, reference = models
    objective = make(ObjectiveInputs(preference=Preference(beta=BETA), frozen=reference))
    together = objective.measure(policy, batch()).losses["loss"]
    alone = sum(objective.measure(policy, batch([pair])).losses["loss"] for pair in PAIRS)
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
