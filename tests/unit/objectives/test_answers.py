"""The loss of answers, against transformers' own."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from shardyard.data.formats.conversations import make as make_rows
from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.models.build import architecture_config, construct
from shardyard.models.initialise import initialise
from shardyard.objectives.answers import make
from shardyard.objectives.base import Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.recipe.schema import Data, Loss, Model, Source
from support.tiny import CONFIGS

TALKS = (
    [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "a"}],
    [
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "b, c"},
        {"role": "user", "content": "3?"},
        {"role": "assistant", "content": "d"},
    ],
)


def batch() -> dict[str, torch.Tensor]:
    data = Data(sequence_length=64, train=[Source(path="x.jsonl")])
    rows = make_rows(FormatInputs(data, load_tokenizer("bytes")))
    return rows.collate([rows.row({"messages": talk}, np.random.default_rng(0)) for talk in TALKS])


def model(family: str) -> Any:
    section = Model(family=family, config=CONFIGS[family], dropout=0.0)
    built = construct(section, architecture_config(section, vocabulary=257))
    initialise(built, seed=1, gathered=lambda _: contextlib.nullcontext())
    for parameter in built.parameters():
        parameter.data.mul_(2)
    return built.eval()


@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen2"])
def test_the_loss_is_that_of_transformers(family: str) -> None:
    """There labels stand at the tokens themselves, here at the ones before."""
    rows, built = batch(), model(family)
    ids = torch.cat([rows["input_ids"], torch.zeros(2, 1, dtype=torch.long)], 1)
    mask = torch.cat([rows["attention_mask"], torch.zeros(2, 1, dtype=torch.long)], 1)
    labels = torch.cat([torch.full((2, 1), -100), rows["labels"]], 1)
    expected = built(input_ids=ids, attention_mask=mask, labels=labels)
    objective = make(ObjectiveInputs())
    counts = objective.counts(rows)
    assert counts == {"loss": len(" a") + len(" b, c") + len(" d") + 3}
    measured = objective.measure(built, rows)
    assert float(measured.losses["loss"]) / counts["loss"] == pytest.approx(float(expected.loss), rel=1e-5)
    likeliest = expected.logits[:, :-1].argmax(-1)
    hits = int((likeliest == rows["labels"]).sum())
    totals = Totals({"loss": float(measured.losses["loss"])}, measured.observed, counts)
    metrics = objective.metrics(totals)
    assert metrics["token_accuracy"] == pytest.approx(hits / counts["loss"])
    assert metrics["perplexity"] == pytest.approx(float(expected.loss.exp()), rel=1e-5)
    assert objective.train_metrics(totals) == {"train/token_accuracy": metrics["token_accuracy"]}


@pytest.mark.parametrize("packing", [False, True])
def test_weights_are_those_of_the_weighted_mean_of_pytorch(packing: bool) -> None:
    """Σ w·CE / Σ w over the targets, also if rows of other weights are in other micro-batches."""
    talks = [[{**turn, "weight": 0.1 + 0.2 * number} for turn in talk] for number, talk in enumerate(TALKS)]
    data = Data(sequence_length=64, train=[Source(path="x.jsonl")], packing=packing)
    rows, built = make_rows(FormatInputs(data, load_tokenizer("bytes"))), model("llama")
    made = [rows.row({"messages": talk}, np.random.default_rng(0)) for talk in talks]
    plain = rows.row({"messages": TALKS[0]}, np.random.default_rng(0))
    made = [rows.join([*made, plain])] if packing else [*made, plain]
    objective = make(ObjectiveInputs(packing=packing))
    for part in filter(None, (made, made[:1], made[1:])):
        batch = rows.collate(part)
        counts, measured = objective.counts(batch), objective.measure(built, batch)
        given = {name: batch[name] for name in batch if name not in ("labels", "target_weights")}
        losses = torch.nn.functional.cross_entropy(
            built(**given).logits.flatten(0, 1), batch["labels"].flatten(), reduction="none"
        )
        weights = (batch["target_weights"] * (batch["labels"] != -100)).flatten()
        mean = Totals({"loss": float(measured.losses["loss"].detach())}, measured.observed, counts).mean("loss")
        assert mean == pytest.approx(float(losses @ weights / weights.sum()), rel=1e-5)
    assert objective.counts(rows.collate(made)) == {"loss": pytest.approx(0.1 * 3 + 0.3 * 9 + 3)}


def test_a_mean_of_small_weights_is_a_mean() -> None:
    totals = Totals({"loss": 0.4}, {"correct": torch.tensor(0.1)}, {"loss": 0.2})
    assert (totals.mean("loss"), totals.share("correct", "loss")) == (2.0, pytest.approx(0.5))


def test_padding_changes_nothing() -> None:
    rows, built = batch(), model("llama")
    objective = make(ObjectiveInputs())
    together = objective.measure(built, rows).losses["loss"]
    length = int(rows["attention_mask"][0].sum())
    first = {name: tensor[:1, :length] for name, tensor in rows.items()}
    second = {name: tensor[1:] for name, tensor in rows.items()}
    alone = sum(objective.measure(built, part).losses["loss"] for part in (first, second))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


def test_label_smoothing_is_that_of_the_recipe() -> None:
    rows, built = batch(), model("gpt2")
    objective = make(ObjectiveInputs(loss=Loss(label_smoothing=0.1)))
    logits = built(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    expected = nn.functional.cross_entropy(
        logits.flatten(0, 1), rows["labels"].flatten(), label_smoothing=0.1, reduction="sum"
    )
    torch.testing.assert_close(objective.measure(built, rows).losses["loss"], expected)


class Seeing(nn.Module):
    """Takes images as well, and remembers what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.bfloat16))
        self.given: dict[str, Any] = {}

    def forward(self, **given: Any) -> Any:
        self.given = given
        return SimpleNamespace(logits=torch.zeros(1, 3, 7) + self.weight.float())


def test_everything_but_the_labels_goes_to_the_model() -> None:
    seeing = Seeing()
    rows = {"input_ids": torch.ones(1, 3, dtype=torch.long), "labels": torch.tensor([[-100, 2, -100]])}
    measured = make(ObjectiveInputs()).measure(seeing, {**rows, "pixel_values": torch.ones(1, 3, 4, 4)})
    assert seeing.given.keys() == {"input_ids", "pixel_values", "use_cache"}
    assert seeing.given["pixel_values"].dtype == torch.bfloat16
    assert seeing.given["input_ids"].dtype == torch.long
    assert float(measured.losses["loss"]) == pytest.approx(float(torch.tensor(7.0).log()))
