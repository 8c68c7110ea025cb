"""Regression, multi-label classification, multiple choice and reranking: rows, transformers' losses, and scores."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from transformers import BertConfig, pipeline

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.formats.text_lists import TextLists
from shardyard.errors import DataError
from shardyard.models.build import architecture_config, construct
from shardyard.objectives.base import Objective, Totals
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.objectives.reranker.loss import rank_sums
from shardyard.objectives.text_regression.correlation import pearson, spearman
from shardyard.recipe.schema import Data, Model, Ranking, Regression, Source
from support.objectives.masked_lm import MODEL
from support.wordpieces import tiny_wordpiece

CLASSES = ("model", "loss", "rank")
QUESTION, CHOICES = "the model has a batch of weight", ["loss", "the rank reads a shard", "seed"]


def rows_format(objective: str, length: int = 16, **config: Any) -> Any:
    recipe = Data(sequence_length=length, train=[Source(path="unread")])
    return make_rows(objective, FormatInputs(recipe, tiny_wordpiece(), BertConfig(**config)))


def a_row(made: Any, **example: Any) -> dict[str, Any]:
    row: dict[str, Any] = made.row(example, np.random.default_rng(0))
    return row


def build(family: str, objective: str, problem: str | None = None, **config: Any) -> Any:
    torch.manual_seed(3)
    section = Model(family=family, config={**MODEL, "pad_token_id": 0, **config}, dropout=0.0)
    made = architecture_config(section, vocabulary=97)
    made.problem_type = problem
    return construct(section, made, objective).eval()


def tokens(*shape: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(1, 97, shape, generator=torch.Generator().manual_seed(4))
    mask = torch.ones_like(ids)
    ids[1, ..., 7:], mask[1, ..., 7:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def same_loss(objective: Objective, ours: Any, theirs: Any, batch: dict[str, torch.Tensor], labels: Any = None) -> None:
    """The loss and its gradients are those of transformers, whose mean is over our targets."""
    expected = theirs(**{**batch, "labels": batch["labels"] if labels is None else labels}).loss
    expected.backward()
    found = objective.measure(ours, batch).losses["loss"] / objective.counts(batch)["loss"]
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_regression_has_the_loss_of_transformers(family: str) -> None:
    ours, theirs = (build(family, "text_regression", "regression", num_labels=1) for _ in range(2))
    batch = {**tokens(4, 12), "labels": torch.tensor([0.5, -1.0, 2.0, 0.0])}
    same_loss(make_objective("text_regression", ObjectiveInputs()), ours, theirs, batch)


@pytest.mark.parametrize(("loss", "expected"), [("mse", 4.25), ("mae", 2.5), ("huber", 0.125 + 1.5)])
def test_losses_of_regression(loss: Any, expected: float) -> None:
    class Zero(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor) -> Any:
            return type("Output", (), {"logits": torch.zeros(len(input_ids), 1)})

    made = make_objective("text_regression", ObjectiveInputs(regression=Regression(loss=loss)))
    batch = {"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.tensor([0.5, -2.0])}
    assert float(made.measure(Zero(), batch).losses["loss"]) == expected
    scores = made.score(made.collect(Zero(), batch, synchronised=False))
    assert scores == {"rmse": pytest.approx(math.sqrt(4.25 / 2)), "mae": 1.25, "pearson": 0.0, "spearman": 0.0}


def test_correlations_are_those_of_scipy() -> None:
    generator = torch.Generator().manual_seed(1)
    found = torch.randint(0, 9, (50,), generator=generator).double()
    labels = found + torch.randint(0, 5, (50,), generator=generator)
    assert pearson(found, labels) == pytest.approx(stats.pearsonr(found, labels).statistic)
    assert spearman(found, labels) == pytest.approx(stats.spearmanr(found, labels).statistic)
    assert pearson(torch.ones(3), torch.arange(3.0)) == spearman(torch.ones(3), torch.arange(3.0)) == 0.0


def test_rows_of_numbers() -> None:
    row = a_row(rows_format("text_regression"), text="the loss", text_pair="a rank", label=3)
    assert row["input_ids"].tolist() == tiny_wordpiece()("the loss", "a rank").input_ids
    assert (row["labels"].dtype, float(row["labels"])) == (np.float32, 3.0)
    with pytest.raises(DataError, match="a label is no number: the text 'the loss' has nan"):
        a_row(rows_format("text_regression"), text="the loss", label=math.nan)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_many_labels_have_the_loss_of_transformers(family: str) -> None:
    problem = "multi_label_classification"
    ours, theirs = (build(family, problem, problem, num_labels=3) for _ in range(2))
    labels = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1]])
    objective = make_objective(problem, ObjectiveInputs())
    batch = {**tokens(4, 12), "labels": labels}
    same_loss(objective, ours, theirs, batch)
    found = objective.measure(ours, batch)
    scores = objective.metrics(Totals({"loss": 0.0}, found.observed, objective.counts(batch)))
    predicted = ours(**tokens(4, 12)).logits > 0
    hits = (predicted & (labels > 0)).sum(0)
    each = [2 * int(h) / max(1, int(p + t)) for h, p, t in zip(hits, predicted.sum(0), labels.sum(0), strict=True)]
    assert scores["f1_micro"] == pytest.approx(2 * int(hits.sum()) / int(predicted.sum() + labels.sum()))
    assert scores["f1_macro"] == pytest.approx(np.mean(each))
    assert scores["accuracy"] == pytest.approx(float((predicted == (labels > 0)).all(-1).float().mean()))


def test_rows_of_many_labels() -> None:
    made = rows_format("multi_label_classification", id2label=dict(enumerate(CLASSES)))
    for labels, expected in ((["rank", "model"], [1, 0, 1]), ([1], [0, 1, 0]), ([], [0, 0, 0])):
        assert a_row(made, text="the loss", labels=labels)["labels"].tolist() == expected
    for label, message in (
        ("seed", "the text 'the loss' has the label 'seed', and the classes of the model are model, loss, rank; name"),
        (3, "has the label 3, and the classes of the model are 0 to 2; name all of them in model.labels"),
    ):
        with pytest.raises(DataError, match=re.escape(message)):
            a_row(made, text="the loss", labels=[label])


def test_a_pipeline_knows_the_kind_of_problem() -> None:
    model = build("bert", "multi_label_classification", "multi_label_classification", num_labels=3)
    (scores,) = pipeline("text-classification", model=model, tokenizer=tiny_wordpiece(), top_k=None)("the loss")
    logits = model(**tiny_wordpiece()("the loss", return_tensors="pt")).logits[0]
    assert sorted(one["score"] for one in scores) == pytest.approx(sorted(logits.sigmoid().tolist()))
    model = build("bert", "text_regression", "regression", num_labels=1)
    ((found,),) = pipeline("text-classification", model=model, tokenizer=tiny_wordpiece(), top_k=None)("the loss")
    assert found["score"] == pytest.approx(float(model(**tiny_wordpiece()("the loss", return_tensors="pt")).logits))


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_multiple_choice_has_the_loss_of_transformers(family: str) -> None:
    ours, theirs = (build(family, "multiple_choice") for _ in range(2))
    batch = {**tokens(4, 3, 12), "labels": torch.tensor([0, 2, 1, 1])}
    objective = make_objective("multiple_choice", ObjectiveInputs())
    counted = {**batch, "num_choices": torch.full((4,), 3)}
    expected = theirs(**batch).loss
    expected.backward()
    found = objective.measure(ours, counted).losses["loss"] / objective.counts(counted)["loss"]
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


def test_choices_are_paired_with_the_question() -> None:
    tokenizer, made = tiny_wordpiece(), rows_format("multiple_choice", 12)
    row = a_row(made, question=QUESTION, choices=CHOICES, label=1)
    expected = tokenizer([QUESTION] * 3, CHOICES, truncation="longest_first", max_length=12, padding=True)
    assert row["input_ids"].tolist() == expected.input_ids
    assert row["attention_mask"].tolist() == expected.attention_mask
    assert (int(row["labels"]), int(row["num_choices"])) == (1, 3)
    row = a_row(rows_format("multiple_choice", 64), context="a batch", question="the loss", choices=["a", "b"], label=0)
    expected = tokenizer(["a batch"] * 2, ["the loss a", "the loss b"])
    assert row["input_ids"].tolist() == expected.input_ids


@pytest.mark.parametrize(("choices", "label"), [(CHOICES, 3), (CHOICES, -1), (["loss"], 0)])
def test_choices_that_will_not_do(choices: list[str], label: int) -> None:
    message = f"right one, counted from 0: {QUESTION!r} has {len(choices)} choices and the label {label}"
    with pytest.raises(DataError, match=re.escape(message)):
        a_row(rows_format("multiple_choice"), question=QUESTION, choices=choices, label=label)


def test_fewer_choices_than_in_the_row_beside_change_nothing() -> None:
    made, model = rows_format("multiple_choice"), build("bert", "multiple_choice")
    rows = [
        a_row(made, question="the loss", choices=["a", "rank"], label=1),
        a_row(made, question="the loss of a model", choices=CHOICES, label=0),
    ]
    objective = make_objective("multiple_choice", ObjectiveInputs())
    alone = [objective.measure(model, made.collate([row])) for row in rows]
    together = objective.measure(model, made.collate(rows))
    total = sum(float(one.losses["loss"].detach()) for one in alone)
    assert float(together.losses["loss"].detach()) == pytest.approx(total, rel=1e-5)
    assert int(together.observed["correct"]) == sum(int(one.observed["correct"]) for one in alone)


def test_lists_of_texts_are_padded_with_their_first_text() -> None:
    made = rows_format("reranker")
    assert isinstance(made, TextLists)
    rows = [
        a_row(made, query="loss", documents=["a"], labels=[1]),
        a_row(made, query="loss", documents=["a model", "the rank reads"], labels=[0, 2]),
    ]
    batch = made.collate(rows)
    assert batch["labels"].tolist() == [[1.0, -1.0], [0.0, 2.0]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["token_type_ids"].shape
    assert torch.equal(batch["input_ids"][0, 1], batch["input_ids"][0, 0])
    assert made.collate(rows[:1])["input_ids"].shape == (1, 1, 5)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1], "one is more than 0: 'loss' has 2 documents and the labels [1.0]"),
        ([0, 0], "'loss' has 2 documents and the labels [0.0, 0.0]"),
        ([-1, 1], "the labels [-1.0, 1.0]"),
        ([math.inf, 1], "the labels [inf, 1.0]"),
    ],
)
def test_relevance_that_will_not_do(labels: list[float], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        a_row(rows_format("reranker"), query="loss", documents=["a", "model"], labels=labels)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_the_binary_loss_of_a_reranker_is_that_of_transformers(family: str) -> None:
    problem = "multi_label_classification"
    ours, theirs = (build(family, "reranker", problem, num_labels=1) for _ in range(2))
    labels = torch.tensor([[0.0, 1, 1], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    batch = {**tokens(4, 3, 12), "labels": labels}
    flat = {name: tensor.flatten(0, 1) for name, tensor in tokens(4, 3, 12).items()}
    expected = theirs(**flat, labels=labels.reshape(-1, 1)).loss
    objective = make_objective("reranker", ObjectiveInputs())
    found = objective.measure(ours, batch).losses["loss"] / objective.counts(batch)["loss"]
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)


@pytest.mark.parametrize("loss", ["binary", "listwise", "margin"])
def test_documents_that_do_not_exist_change_nothing(loss: Any) -> None:
    made, model = rows_format("reranker"), build("bert", "reranker", num_labels=1)
    rows = [
        a_row(made, query="loss", documents=["a model", "rank"], labels=[0, 1]),
        a_row(made, query="the seed", documents=["rank", "loss", "a seed of a stage", "row"], labels=[0, 0, 2, 1]),
    ]
    objective = make_objective("reranker", ObjectiveInputs(ranking=Ranking(loss=loss)))
    alone = [objective.measure(model, made.collate([row])) for row in rows]
    together = objective.measure(model, made.collate(rows))
    total = sum(float(one.losses["loss"].detach()) for one in alone)
    assert float(together.losses["loss"].detach()) == pytest.approx(total, rel=1e-5)
    for name, value in together.observed.items():
        assert float(value) == pytest.approx(sum(float(one.observed[name]) for one in alone)), name
    assert objective.counts(made.collate(rows))["loss"] == (6 if loss == "binary" else 2)


def test_ranks_of_documents() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 9.0], [1.0, 1.0, 0.0, 0.5]])
    labels = torch.tensor([[0.0, 1, 2, -1], [1, 0, 0, 0]])
    found = {name: float(value) for name, value in rank_sums(scores, labels).items()}
    # In the first row the relevant ones come second and third; in the second a wrong one ties with the right one.
    gain = 1 / math.log2(3) + 3 / math.log2(4)
    assert found["accuracy"] == 0.0
    assert found["mrr"] == pytest.approx(1 / 2 + 1 / 2)
    assert found["ndcg_at_10"] == pytest.approx(gain / (3 + 1 / math.log2(3)) + 1 / math.log2(3))
    totals = Totals({"loss": 0.0}, {**rank_sums(scores, labels), "queries": torch.tensor(2.0)}, {"loss": 8})
    assert make_objective("reranker", ObjectiveInputs()).metrics(totals)["mrr"] == pytest.approx(0.5)
