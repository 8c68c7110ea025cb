"""Masked language modelling and BERT's pretraining against transformers' own losses, and their sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shardyard.models.build import architecture_config, construct
from shardyard.objectives.base import IGNORED, Objective, Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.recipe.schema import Loss, Model

VOCABULARY, ROWS, LENGTH, PAD = 97, 4, 20, 1
SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
MASKED_FAMILIES: dict[str, dict[str, Any]] = {
    "bert": SIZES,
    "roberta": SIZES,
    "modernbert": SIZES | {"global_attn_every_n_layers": 2, "local_attention": 8},
}


def tiny_model(family: str, objective: str, **config: Any) -> PreTrainedModel:
    torch.manual_seed(5)
    model = Model(family=family, config={**SIZES, **config}, dropout=0.0)
    special = {"pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 2}
    built = construct(model, architecture_config(model, vocabulary=VOCABULARY, special_tokens=special), objective)
    return built.eval()


def masked_batch() -> dict[str, Tensor]:
    """Rows of different lengths, padded."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH) < torch.tensor([20, 13, 7, 18])[:, None]).long()
    chosen = (torch.rand(ROWS, LENGTH, generator=generator) < 0.3) & (mask == 1)
    return {
        "input_ids": torch.where(mask == 1, tokens, PAD),
        "attention_mask": mask,
        "labels": torch.where(chosen, torch.randint(3, VOCABULARY, (ROWS, LENGTH), generator=generator), IGNORED),
    }


def pair_batch() -> dict[str, Tensor]:
    segments = (torch.arange(LENGTH) > 5).long().expand(ROWS, LENGTH)
    return masked_batch() | {"token_type_ids": segments, "next_sentence_label": torch.tensor([0, 1, 1, 0])}


def rows(batch: dict[str, Tensor], chosen: slice) -> dict[str, Tensor]:
    return {name: tensor[chosen] for name, tensor in batch.items()}


def total(objective: Objective, model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """The weighted sum of the means, as the engine makes it."""
    measured, counts = objective.measure(model, batch), objective.counts(batch)
    return torch.stack([w * measured.losses[term] / counts[term] for term, w in objective.weights.items()]).sum()


@pytest.mark.parametrize("family", MASKED_FAMILIES)
def test_masked_loss_and_gradient_are_those_of_transformers(family: str) -> None:
    ours, theirs = (tiny_model(family, "masked_lm", **MASKED_FAMILIES[family]) for _ in range(2))
    expected = theirs(**masked_batch()).loss
    expected.backward()
    found = total(make_objective("masked_lm", ObjectiveInputs()), ours, masked_batch())
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("family", ["bert", "megatron-bert"])
def test_pretraining_loss_and_gradient_are_those_of_transformers(family: str) -> None:
    ours, theirs = (tiny_model(family, "bert_pretraining") for _ in range(2))
    expected = theirs(**pair_batch()).loss
    expected.backward()
    found = total(make_objective("bert_pretraining", ObjectiveInputs()), ours, pair_batch())
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(("objective", "make_batch"), [("masked_lm", masked_batch), ("bert_pretraining", pair_batch)])
def test_sums_add_up_over_micro_batches(objective: str, make_batch: Any) -> None:
    model, batch, made = tiny_model("bert", objective), make_batch(), make_objective(objective, ObjectiveInputs())
    with torch.no_grad():
        whole = made.measure(model, batch)
        parts = [made.measure(model, rows(batch, part)) for part in (slice(0, 1), slice(1, 4))]
    counts = [made.counts(rows(batch, part)) for part in (slice(0, 1), slice(1, 4))]
    for term in made.weights:
        assert float(whole.losses[term]) == pytest.approx(sum(float(p.losses[term]) for p in parts), rel=1e-5)
        assert made.counts(batch)[term] == sum(count[term] for count in counts)
    for name in whole.observed:
        assert int(whole.observed[name]) == sum(int(p.observed[name]) for p in parts)


def test_a_batch_without_targets_adds_zero() -> None:
    model, batch = tiny_model("bert", "masked_lm"), masked_batch()
    batch["labels"] = torch.full_like(batch["labels"], IGNORED)
    made = make_objective("masked_lm", ObjectiveInputs())
    measured = made.measure(model, batch)
    measured.losses["loss"].backward()
    assert float(measured.losses["loss"].detach()) == 0.0
    assert made.counts(batch) == {"loss": 0}
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_metrics() -> None:
    model, batch = tiny_model("bert", "bert_pretraining"), pair_batch()
    made = make_objective("bert_pretraining", ObjectiveInputs())
    with torch.no_grad():
        output = model(**{k: v for k, v in batch.items() if k not in ("labels", "next_sentence_label")})
        batch["labels"][batch["labels"] != IGNORED] = output.prediction_logits.argmax(-1)[batch["labels"] != IGNORED]
        batch["labels"][0] = torch.where(batch["labels"][0] != IGNORED, 0, IGNORED)
        likely = output.seq_relationship_logits.argmax(-1)
        batch["next_sentence_label"] = torch.tensor(
            [int(likely[0]), int(likely[1]), int(likely[2]), 1 - int(likely[3])]
        )
        measured = made.measure(model, batch)
    counts = made.counts(batch)
    totals = Totals({term: float(loss) for term, loss in measured.losses.items()}, measured.observed, counts)
    wrong = int((batch["labels"][0] != IGNORED).sum())
    found = made.metrics(totals)
    assert wrong > 0
    assert found["mlm_accuracy"] == pytest.approx(1 - wrong / counts["mlm"])
    assert found["nsp_accuracy"] == 0.75
    assert found["loss_mlm"] + found["loss_nsp"] == pytest.approx(made.total(totals))
    assert made.train_metrics(totals)["train/loss_nsp"] == found["loss_nsp"]
    masked = make_objective("masked_lm", ObjectiveInputs())
    metrics = masked.metrics(Totals({"loss": 20.0}, {"correct": torch.tensor(3)}, {"loss": 10}))
    assert metrics == {"perplexity": pytest.approx(7.389056), "accuracy": 0.3}


def test_the_loss_is_the_one_that_the_recipe_names() -> None:
    model, batch = tiny_model("bert", "masked_lm"), masked_batch()
    found = {}
    for loss in (Loss(), Loss(label_smoothing=0.2), Loss(name="focal", focal_gamma=0.0), Loss(name="focal")):
        made = make_objective("masked_lm", ObjectiveInputs(loss=loss))
        found[loss] = float(total(made, model, batch).detach())
    plain, smooth, zero, focal = found.values()
    assert zero == pytest.approx(plain, rel=1e-6)
    assert focal < plain
    assert smooth != pytest.approx(plain, rel=1e-4)
