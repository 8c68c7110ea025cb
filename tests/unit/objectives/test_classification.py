"""Classification against transformers' loss and the scores of whole evaluations, and the rows of labelled texts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, GPT2Config, PreTrainedTokenizerFast

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.formats.labelled_text import LabelledText
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import DataError, UnusableRowError
from shardyard.models.build import architecture_config, construct
from shardyard.objectives import scores
from shardyard.objectives.base import IGNORED, Totals
from shardyard.objectives.classification import Classification
from shardyard.recipe.schema import Data, Loss, Model, Source
from support.data_cases import bytes_tokenizer
from support.objectives.masked_lm import MODEL
from support.wordpieces import tiny_wordpiece


class Answers(nn.Module):
    """A model that gives the logits that it is handed, as its precision allows."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones((), dtype=dtype))
        self.seen: Tensor | None = None

    def forward(self, pixel_values: Tensor) -> Any:
        self.seen = pixel_values
        return SimpleNamespace(logits=pixel_values * self.scale)


class States(Answers):
    """A model as PP-LCNet, whose scores have the name of states."""

    def forward(self, pixel_values: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=pixel_values)


def measured_totals(logits: Tensor, labels: Tensor, parts: int = 1) -> tuple[Classification, Totals]:
    """Measured in several micro-batches and added up."""
    made = Classification(Loss())
    losses, observed, count = 0.0, dict[str, Tensor](), 0.0
    for part, targets in zip(logits.chunk(parts), labels.chunk(parts), strict=True):
        batch = {"pixel_values": part, "labels": targets}
        measured = made.measure(Answers(), batch)
        losses += float(measured.losses["loss"].detach())
        count += made.counts(batch)["loss"]
        observed = {name: observed.get(name, 0) + value for name, value in measured.observed.items()}
    return made, Totals({"loss": losses}, observed, {"loss": count})


@pytest.mark.parametrize("classes", [2, 5, 6, 200])
def test_metrics_are_the_scores_of_all_rows_together(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, max(2, classes // 2), (60,), generator=generator)
    logits = torch.randn(60, classes, generator=generator)
    logits[torch.arange(40), labels[:40]] += 3
    labels[5] = IGNORED
    made, totals = measured_totals(logits, labels, parts=3)
    found = made.metrics(totals)
    assert found["accuracy"] == pytest.approx(scores.accuracy(logits.argmax(-1), labels))
    assert found["f1"] == pytest.approx(scores.f1(logits.argmax(-1), labels))
    assert ("accuracy_top5" in found) == (classes > 5)
    if classes > 5:
        best = logits.argsort(descending=True)[:, :5]
        right = [int(label) in row for label, row in zip(labels.tolist(), best.tolist(), strict=True) if label >= 0]
        assert found["accuracy_top5"] == pytest.approx(np.mean(right))
    expected = torch.nn.functional.cross_entropy(logits, labels)
    assert totals.mean("loss") == pytest.approx(float(expected), rel=1e-5)
    assert made.train_metrics(totals) == {"train/accuracy": found["accuracy"]}


def test_images_come_in_the_precision_of_the_model() -> None:
    model = Answers(torch.bfloat16)
    batch = {"pixel_values": torch.randn(3, 4), "labels": torch.tensor([0, 1, 3])}
    measured = Classification(Loss()).measure(model, batch)
    assert model.seen is not None
    assert model.seen.dtype == torch.bfloat16
    assert measured.losses["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (Loss(label_smoothing=0.1), 0.9 * 1.0 + 0.1 * 1.0),
        (Loss(name="focal", focal_gamma=2.0), 0.25),
    ],
)
def test_smoothed_and_focal_loss(loss: Loss, expected: float) -> None:
    """With two equal logits every loss is log 2 times a factor."""
    batch = {"pixel_values": torch.zeros(3, 2), "labels": torch.tensor([0, 1, 1])}
    measured = Classification(loss).measure(Answers(), batch)
    assert float(measured.losses["loss"].detach()) == pytest.approx(3 * expected * np.log(2), rel=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_loss_and_gradient_are_those_of_transformers(family: str) -> None:
    def build() -> Any:
        torch.manual_seed(3)
        model = Model(family=family, config={**MODEL, "num_labels": 6, "pad_token_id": 0}, dropout=0.0)
        return construct(model, architecture_config(model, vocabulary=97), "text_classification").eval()

    ours, theirs = build(), build()
    tokens = torch.randint(1, 97, (4, 12), generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(tokens)
    tokens[1, 7:], mask[1, 7:] = 0, 0
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": torch.tensor([5, 0, 2, 2])}
    expected = theirs(**batch).loss
    expected.backward()
    found = Classification(Loss()).measure(ours, batch).losses["loss"] / 4
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


def rows_format(length: int, tokenizer: PreTrainedTokenizerFast | None = None, model: Any = None) -> LabelledText:
    recipe = Data(sequence_length=length, train=[Source(path="unread")])
    model = model or BertConfig(num_labels=3)
    made = make_rows("text_classification", FormatInputs(recipe, tokenizer or tiny_wordpiece(), model))
    assert isinstance(made, LabelledText)
    return made


def a_row(made: LabelledText, **example: Any) -> dict[str, Any]:
    return made.row({"label": 1, **example}, np.random.default_rng(0))


FIRST, SECOND = "the model has a batch of weight and loss", "each rank reads a shard"


@pytest.mark.parametrize("length", [6, 7, 12, 13, 18, 19, 24, 33, 60])
def test_pairs_are_cut_as_transformers_cuts_them(length: int) -> None:
    tokenizer, made = tiny_wordpiece(), rows_format(length)
    for a, b in ((FIRST, SECOND), (SECOND, FIRST), (FIRST, "loss"), ("loss", FIRST)):
        expected = tokenizer(a, b, truncation="longest_first", max_length=length, return_token_type_ids=True)
        whole = tokenizer(a, b)
        before = made.num_cut
        row = a_row(made, text=a, text_pair=b)
        assert row["input_ids"].tolist() == expected.input_ids
        assert row["token_type_ids"].tolist() == expected.token_type_ids
        assert row["attention_mask"].tolist() == expected.attention_mask
        assert made.num_cut - before == len(whole.input_ids) - len(expected.input_ids)


def test_single_texts() -> None:
    tokenizer, made = tiny_wordpiece(), rows_format(8)
    row = a_row(made, text=FIRST)
    assert row["input_ids"].tolist() == tokenizer(FIRST, truncation=True, max_length=8).input_ids
    assert int(row["labels"]) == 1
    batch = made.collate([row, a_row(made, text="the loss", label=2)])
    assert batch["labels"].tolist() == [1, 2]
    assert batch["attention_mask"].sum(-1).tolist() == [8, 4]
    assert set(batch["input_ids"][1, 4:].tolist()) == {tokenizer.pad_token_id}


def test_a_decoder_has_no_segments_and_no_special_tokens() -> None:
    tokenizer = load_tokenizer("bpe-docs-4k")
    made = rows_format(16, tokenizer, GPT2Config(num_labels=3))
    row = a_row(made, text="The text")
    assert "token_type_ids" not in row
    assert row["input_ids"].tolist() == tokenizer("The text").input_ids


def test_labels_and_tokenizers_that_will_not_do() -> None:
    with pytest.raises(UnusableRowError, match=r"3 classes, 0 to 2: the label is 3; set num_labels in model\.config"):
        a_row(rows_format(8), text="the", label=3)
    with pytest.raises(
        UnusableRowError, match=r"'dog' is none of LABEL_0, LABEL_1, LABEL_2; name all in model\.labels"
    ):
        a_row(rows_format(8), text="the", label="dog")
    named = rows_format(8, model=BertConfig(id2label={0: "cat", 1: "dog"}))
    assert a_row(named, text="the", label="dog")["labels"] == 1
    with pytest.raises(UnusableRowError, match="the label -1, which stands for no class"):
        a_row(rows_format(8), text="the", label=-1)
    with pytest.raises(DataError, match="no pad_token"):
        rows_format(8, bytes_tokenizer())


def test_scores_by_the_name_of_states_are_read() -> None:
    scored, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    measured = Classification(Loss()).measure(States(), {"pixel_values": scored, "labels": labels})
    assert float(measured.losses["loss"]) == pytest.approx(float(nn.functional.cross_entropy(scored, labels) * 4))
