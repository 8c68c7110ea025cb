"""The loss against transformers' own, its sums, and documents that share a row."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from shardyard.models.build import architecture_config, construct
from shardyard.objectives.base import IGNORED, count_targets
from shardyard.objectives.causal_lm.loss import causal_lm_loss
from shardyard.recipe.schema import Model
from support.tiny import CONFIGS

ROWS, LENGTH = 3, 24


def tiny_model(family: str) -> PreTrainedModel:
    torch.manual_seed(5)
    model = Model(family=family, config=CONFIGS[family], dropout=0.0)
    return construct(model, architecture_config(model, vocabulary=257)).eval()


def tokens() -> Tensor:
    return torch.randint(0, 257, (ROWS, LENGTH + 1), generator=torch.Generator().manual_seed(1))


def positions(rows: int = ROWS, length: int = LENGTH) -> Tensor:
    return torch.arange(length).expand(rows, length)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_sum_is_transformers_mean_times_its_targets(family: str) -> None:
    """transformers shifts labels itself and averages; ours are shifted already and summed."""
    model, ids = tiny_model(family), tokens()
    with torch.no_grad():
        theirs = model(input_ids=ids, labels=ids).loss
        ours = causal_lm_loss(model, ids[:, :-1], ids[:, 1:], positions())
    assert float(ours) == pytest.approx(float(theirs) * ROWS * LENGTH, rel=1e-6)
    assert count_targets(ids[:, 1:]) == ROWS * LENGTH


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_gradient_is_transformers_too(family: str) -> None:
    ids = tokens()
    theirs, ours = tiny_model(family), tiny_model(family)
    theirs(input_ids=ids, labels=ids).loss.backward()
    (causal_lm_loss(ours, ids[:, :-1], ids[:, 1:], positions()) / (ROWS * LENGTH)).backward()
    for (name, a), b in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}")


def test_ignored_labels_weigh_nothing() -> None:
    model, ids = tiny_model("gpt2"), tokens()
    labels = ids[:, 1:].clone()
    labels[1] = IGNORED
    labels[2, 5:] = IGNORED
    with torch.no_grad():
        theirs = model(input_ids=ids, labels=torch.cat([ids[:, :1], labels], dim=1)).loss
        ours = causal_lm_loss(model, ids[:, :-1], labels, positions())
        nothing = causal_lm_loss(model, ids[:, :-1], torch.full_like(labels, IGNORED), positions())
    assert count_targets(labels) == LENGTH + 5
    assert float(ours) == pytest.approx(float(theirs) * (LENGTH + 5), rel=1e-6)
    # A rank without a target adds zero and not a number that is none.
    assert float(nothing) == 0.0
    assert count_targets(torch.full_like(labels, IGNORED)) == 0


@pytest.mark.parametrize("family", CONFIGS)
def test_sums_add_up_over_micro_batches(family: str) -> None:
    model, ids = tiny_model(family), tokens()
    with torch.no_grad():
        whole = causal_lm_loss(model, ids[:, :-1], ids[:, 1:], positions())
        parts = [causal_lm_loss(model, row[None, :-1], row[None, 1:], positions(1)) for row in ids]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_packed_documents_are_as_if_apart(family: str) -> None:
    """Positions that start again keep attention from looking back, in whichever of the rows that share a batch."""
    model, ids = tiny_model(family), tokens()
    cuts = [(0, 7, 24), (0, 1, 24), (0, 12, 20, 24)]
    labels, packed = ids[:, 1:].clone(), positions().clone()
    for row, ends in enumerate(cuts):
        for first, last in pairwise(ends):
            packed[row, first:last] = torch.arange(last - first)
            labels[row, last - 1] = IGNORED
    with torch.no_grad():
        together = causal_lm_loss(model, ids[:, :-1], labels, packed)
        apart = torch.zeros(())
        for row, ends in enumerate(cuts):
            for first, last in pairwise(ends):
                part = slice(first, last)
                arguments = ids[row, None, part], labels[row, None, part], positions(1, last - first)
                apart += causal_lm_loss(model, *arguments)
        looking_back = causal_lm_loss(model, ids[:, :-1], labels, positions())
    assert float(together) == pytest.approx(float(apart), rel=1e-5)
    assert float(together) != pytest.approx(float(looking_back), rel=1e-5)


def test_half_precision_logits_are_summed_in_fp32() -> None:
    model, ids = tiny_model("gpt2"), tokens()
    with torch.no_grad():
        exact = causal_lm_loss(model, ids[:, :-1], ids[:, 1:], positions())
        rounded = causal_lm_loss(model.to(torch.bfloat16), ids[:, :-1], ids[:, 1:], positions())
    assert rounded.dtype == torch.float32
    # A sum of 72 losses of 5.5 nats in bf16 would be rounded to multiples of 2.
    assert float(rounded) == pytest.approx(float(exact), rel=5e-4)
