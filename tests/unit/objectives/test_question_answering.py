"""Extractive question answering: windows of contexts, transformers' loss, and SQuAD's scores."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, PreTrainedTokenizerFast

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.stream.rows import Row
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import DataError
from shardyard.models.build import architecture_config, construct
from shardyard.objectives.question_answering.loss import QuestionAnswering, Span, best_span
from shardyard.objectives.question_answering.rows import QuestionRows
from shardyard.objectives.question_answering.squad import exact_match, f1
from shardyard.recipe.schema import Answering, Data, Model, Source
from support.objectives.masked_lm import MODEL
from support.wordpieces import tiny_wordpiece

QUESTION = "the weight ?"
CONTEXT = "the model has a batch . the weight the loss . each rank reads a shard model the token"


def rows_format(
    length: int = 64, tokenizer: PreTrainedTokenizerFast | None = None, *, training: bool = False, **settings: Any
) -> QuestionRows:
    recipe = Data(sequence_length=length, train=[Source(path="unread")])
    inputs = FormatInputs(
        recipe, tokenizer or tiny_wordpiece(), BertConfig(), answering=Answering(**settings), training=training
    )
    made = make_rows("question_answering", inputs)
    assert isinstance(made, QuestionRows)
    return made


def example(answer: str | None = "loss", context: str = CONTEXT, **more: Any) -> dict[str, Any]:
    answers = {"text": [], "answer_start": []}
    if answer is not None:
        answers = {"text": [answer], "answer_start": [context.index(answer)]}
    return {"question": QUESTION, "context": context, "answers": answers, **more}


def windows(made: QuestionRows, *examples: dict[str, Any]) -> list[Row]:
    generator = np.random.default_rng(0)
    return [made.row(piece, generator) for piece in made.pieces(examples, generator)]


@pytest.mark.parametrize(("length", "stride"), [(14, 0), (16, 3), (20, 5), (24, 8), (64, 0)])
def test_windows_are_those_of_transformers(length: int, stride: int) -> None:
    tokenizer, made = tiny_wordpiece(), rows_format(length, stride=stride)
    expected = tokenizer(
        QUESTION, CONTEXT, truncation="only_second", max_length=length, stride=stride, return_overflowing_tokens=True,
        return_offsets_mapping=True, return_token_type_ids=True,
    )  # fmt: skip
    rows = windows(made, example())
    assert [row["input_ids"].tolist() for row in rows] == expected.input_ids
    assert [row["token_type_ids"].tolist() for row in rows] == expected.token_type_ids
    for row, offsets in zip(rows, expected.offset_mapping, strict=True):
        second = row["token_type_ids"] == 1
        found = [tuple(pair) for pair in row["offsets"][second].tolist()][:-1]
        assert found == [pair for pair, own in zip(offsets, second, strict=True) if own][:-1]


def test_an_answer_outside_a_window_has_the_place_of_no_answer() -> None:
    rows = windows(rows_format(16, stride=2), example("loss"))
    there = [row for row in rows if int(row["start_positions"])]
    assert 0 < len(there) < len(rows)
    for row in there:
        ids = row["input_ids"][int(row["start_positions"]) : int(row["end_positions"]) + 1].tolist()
        assert tiny_wordpiece().decode(ids) == "loss"
    for row in rows:
        assert (int(row["start_positions"]) == 0) == (int(row["end_positions"]) == 0)


def test_an_answer_in_pieces_has_all_its_tokens() -> None:
    (row,) = windows(rows_format(), example("weight the"))
    ids = row["input_ids"][int(row["start_positions"]) : int(row["end_positions"]) + 1].tolist()
    assert tiny_wordpiece().convert_ids_to_tokens(ids) == ["we", "##ight", "the"]


def test_a_long_question_leaves_room_for_the_context() -> None:
    made = rows_format(20)
    rows = windows(made, example(question="loss " * 50))
    assert {len(row["input_ids"]) for row in rows} <= set(range(21))
    assert all(((row["offsets"][:, 0] >= 0).sum()) > 0 for row in rows)
    assert made.num_cut == 50 - 8


@pytest.mark.parametrize("name", ["bpe-docs-4k", "unigram-en-es-8k"])
def test_offsets_are_characters_of_the_context(name: str) -> None:
    tokenizer = load_tokenizer(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    context = "Señor Núñez — an “engineer” of 東京 — wrote it"
    for row in windows(rows_format(24, tokenizer, stride=2), example("engineer", context)):
        if int(row["start_positions"]) > 0:
            first, last = (row["offsets"][int(row[name])] for name in ("start_positions", "end_positions"))
            assert context[first[0] : last[1]].strip(" “") == "engineer"
            break
    else:
        pytest.fail("no window holds the answer")


@pytest.mark.parametrize("form", ["lists", "mappings"])
def test_both_layouts_of_answers(form: str) -> None:
    start = CONTEXT.index("loss")
    answers: Any = {"text": ["loss"], "answer_start": [start]}
    if form == "mappings":
        answers = [{"text": "loss", "answer_start": start}]
    (row,) = windows(rows_format(), example(answers=answers))
    assert int(row["start_positions"]) > 0


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"text": ["loss"], "answer_start": [3]}, "has the answer 'loss' at character 3 of its context, where ' mod'"),
        (
            {"text": ["loss"], "answer_start": [-1]},
            "the question 'the weight ?' has the answer 'loss' at character -1",
        ),
        ({"text": [], "answer_start": []}, "the question 'the weight ?' has no answer; set answering.unanswerable"),
    ],
)
def test_answers_that_will_not_do(answers: Any, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        windows(rows_format(), example(answers=answers))
    if not answers["text"]:
        (row,) = windows(rows_format(unanswerable=True), example(None))
        assert int(row["start_positions"]) == int(row["end_positions"]) == 0


def test_rows_in_training_hold_what_the_model_reads() -> None:
    (row,) = windows(rows_format(training=True), example())
    assert row.keys() == {"input_ids", "attention_mask", "token_type_ids", "start_positions", "end_positions"}


def test_too_short_rows() -> None:
    with pytest.raises(DataError, match="too little for question and context"):
        rows_format(3)


@pytest.mark.parametrize(
    ("answer", "references", "exact", "overlap"),
    [
        ("The  Loss.", ["loss"], 1.0, 1.0),
        ("weight and loss", ["the loss", "a weight"], 0.0, 0.5),
        ("loss loss", ["loss"], 0.0, 2 / 3),
        ("", [], 1.0, 1.0),
        ("loss", [], 0.0, 0.0),
        ("", ["loss"], 0.0, 0.0),
        ("an", ["the"], 1.0, 1.0),
        ("shard", ["weight"], 0.0, 0.0),
    ],
)
def test_scores_of_squad(answer: str, references: list[str], exact: float, overlap: float) -> None:
    assert exact_match(answer, references) == exact
    assert f1(answer, references) == pytest.approx(overlap)


def build(family: str) -> Any:
    torch.manual_seed(3)
    model = Model(family=family, config={**MODEL, "pad_token_id": 0}, dropout=0.0)
    return construct(model, architecture_config(model, vocabulary=97), "question_answering").eval()


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_loss_and_gradient_are_those_of_transformers(family: str) -> None:
    ours, theirs = build(family), build(family)
    tokens = torch.randint(1, 97, (4, 12), generator=torch.Generator().manual_seed(4))
    places = {"start_positions": torch.tensor([0, 3, 5, 11]), "end_positions": torch.tensor([0, 4, 5, 11])}
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **places}
    expected = theirs(**batch).loss
    expected.backward()
    found = QuestionAnswering(Answering()).measure(ours, batch).losses["loss"] / 4
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


def test_padding_changes_nothing() -> None:
    made, model = rows_format(64, unanswerable=True), build("bert")
    rows = windows(made, example("loss"), example("loss", "the loss"))
    objective = QuestionAnswering(Answering())
    alone = sum(float(objective.measure(model, made.collate([row])).losses["loss"].detach()) for row in rows)
    together = float(objective.measure(model, made.collate(rows)).losses["loss"].detach())
    assert together == pytest.approx(alone, rel=1e-5)


class Scores(nn.Module):
    """A model that answers with the word `token` where it is, and with no answer as much as it is told."""

    def __init__(self, none: float) -> None:
        super().__init__()
        self.none = none

    def forward(self, input_ids: Tensor, **_: Tensor) -> Any:
        logits = torch.zeros(input_ids.shape)
        first, last = tiny_wordpiece().convert_tokens_to_ids(["shard", "model"])
        start, end = logits + 5.0 * (input_ids == first), logits + 3.0 * (input_ids == last)
        start[:, 0] = end[:, 0] = self.none
        return SimpleNamespace(start_logits=start, end_logits=end)


@pytest.mark.parametrize(("none", "expected"), [(0.0, 1.0), (9.0, 0.0)])
@pytest.mark.parametrize("length", [16, 64])
def test_the_best_span_of_all_windows_is_the_answer(length: int, none: float, expected: float) -> None:
    made = rows_format(length, stride=2, unanswerable=True)
    objective = QuestionAnswering(Answering(unanswerable=True))
    batch = made.collate(windows(made, example("shard model"), example(None, "loss has weight")))
    found = objective.score(objective.collect(Scores(none), batch, synchronised=False))
    assert found["f1_answerable"] == expected
    assert found["accuracy_unanswerable"] == 1.0 - expected
    assert found["exact_match"] == found["f1"] == 0.5
    answered = QuestionAnswering(Answering())
    assert answered.score(objective.collect(Scores(none), batch, synchronised=False)).keys() == {"exact_match", "f1"}


def test_spans_are_of_the_context_in_order_and_not_longer_than_asked() -> None:
    start, end = torch.tensor([9.0, 1, 0, 5, 0, 0]), torch.tensor([9.0, 4, 0, 0, 2, 3])
    allowed = torch.tensor([False, True, True, True, True, True])
    assert best_span(start, end, allowed, 30) == ((3, 5), 8.0)
    assert best_span(start, end, allowed, 2) == ((3, 4), 7.0)
    assert best_span(start, end, allowed, 1) == ((1, 1), 5.0)


def test_windows_of_one_question_are_scored_once() -> None:
    spans = [Span(1, "loss", 2.0, 0.0, ["loss"]), Span(1, "shard", 1.0, 3.0, ["loss"]), Span(2, "x", 1.0, 0.0, ["y"])]
    assert QuestionAnswering(Answering(unanswerable=True)).score(spans) == {
        "exact_match": 0.5, "f1": 0.5, "f1_answerable": 0.5
    }  # fmt: skip
