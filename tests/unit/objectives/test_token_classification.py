"""Token classification: tags of words, transformers' loss, and entities as conlleval counts them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, PreTrainedTokenizerFast, pipeline

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import UnusableRowError
from shardyard.models.build import architecture_config, construct
from shardyard.objectives.base import IGNORED, Totals
from shardyard.objectives.token_classification.entities import (
    EntityCounts,
    count_entities,
    entities,
    mark_entities,
    precision_recall_f1,
)
from shardyard.objectives.token_classification.loss import TokenClassification
from shardyard.objectives.token_classification.rows import TaggedRows
from shardyard.recipe.schema import Data, Loss, Model, Source
from support.objectives.masked_lm import MODEL
from support.objectives.token_classification import TAGS
from support.wordpieces import tiny_wordpiece


def rows_format(length: int = 32, tokenizer: PreTrainedTokenizerFast | None = None, **labels: Any) -> TaggedRows:
    recipe = Data(sequence_length=length, train=[Source(path="unread")])
    config = BertConfig(**(labels or {"id2label": dict(enumerate(TAGS))}))
    made = make_rows("token_classification", FormatInputs(recipe, tokenizer or tiny_wordpiece(), config))
    assert isinstance(made, TaggedRows)
    return made


def a_row(made: TaggedRows, tokens: list[str], tags: list[Any]) -> dict[str, Any]:
    return made.row({"tokens": tokens, "tags": tags}, np.random.default_rng(0))


WORDS = ["the", "weight", "of", "a", "token", "!"]


@pytest.mark.parametrize("length", [4, 6, 8, 32])
def test_only_the_first_token_of_a_word_has_its_tag(length: int) -> None:
    tokenizer, made = tiny_wordpiece(), rows_format(length)
    row = a_row(made, WORDS, [0, 1, 0, 0, 2, 3])
    expected = tokenizer(WORDS, is_split_into_words=True, truncation=True, max_length=length)
    assert row["input_ids"].tolist() == expected.input_ids
    seen: set[int | None] = {None}
    labels = []
    for word in expected.word_ids():
        labels.append(IGNORED if word in seen else [0, 1, 0, 0, 2, 3][word])
        seen.add(word)
    assert row["labels"].tolist() == labels
    assert made.num_cut == len(tokenizer(WORDS, is_split_into_words=True).input_ids) - len(expected.input_ids)


@pytest.mark.parametrize("name", ["bpe-docs-4k", "wordpiece-docs-4k", "unigram-en-es-8k", "bytes"])
def test_every_word_has_its_tag_whatever_the_tokenizer(name: str) -> None:
    words = ["Don't", "print(x)", "señor", "of", "1984", "—", "'s"]
    tokenizer = load_tokenizer(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    row = a_row(rows_format(99, tokenizer, num_labels=7), words, list(range(7)))
    assert [label for label in row["labels"].tolist() if label != IGNORED] == list(range(7))


def test_words_that_the_tokenizer_drops_have_no_target() -> None:
    row = a_row(rows_format(), ["the", "\u200b", "token"], [1, 2, 3])
    assert [label for label in row["labels"].tolist() if label != IGNORED] == [1, 3]


def test_tags_by_name_and_by_number_are_the_same() -> None:
    made = rows_format()
    named, numbered = a_row(made, ["the", "loss"], ["B-LONG", "O"]), a_row(made, ["the", "loss"], [1, 0])
    assert named["labels"].tolist() == numbered["labels"].tolist()


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([0], "an example needs one tag a word: the example 'the loss of' has 3 words and 1 tags"),
        ([0, 0, 4], "the example 'the loss of' has the tag 4, but the model has 4 classes, 0 to 3; name all in"),
        ([0, 0, -1], "has the tag -1, but"),
        (["O", "O", "B-X"], "has the tag 'B-X'; model.labels names O, B-LONG, I-LONG, B-SHORT: add it there"),
    ],
)
def test_tags_that_will_not_do(tags: list[Any], message: str) -> None:
    with pytest.raises(UnusableRowError, match=message):
        a_row(rows_format(), ["the", "loss", "of"], tags)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-A I-A O", {("A", 1, 3)}),
        ("B-A B-A I-A", {("A", 0, 1), ("A", 1, 3)}),
        ("I-A I-B O I-B", {("A", 0, 1), ("B", 1, 2), ("B", 3, 4)}),
        ("B-A I-B", {("A", 0, 1), ("B", 1, 2)}),
        ("S-A B-A I-A E-A E-A", {("A", 0, 1), ("A", 1, 4), ("A", 4, 5)}),
        ("U-A U-A B-A L-A", {("A", 0, 1), ("A", 1, 2), ("A", 2, 4)}),
        ("B-A-b I-A-b", {("A-b", 0, 2)}),
        ("O O", set()),
    ],
)
def test_entities(tags: str, expected: set[tuple[str, int, int]]) -> None:
    assert entities(tags.split()) == expected


def test_precision_recall_and_f1_count_whole_entities() -> None:
    labelled, predicted = ["B-A", "I-A", "O", "B-B"], ["B-A", "O", "O", "B-B"]
    assert count_entities(predicted, labelled) == EntityCounts(1, 2, 2)
    assert precision_recall_f1(EntityCounts(1, 2, 4)) == (0.5, 0.25, pytest.approx(1 / 3))
    assert precision_recall_f1(EntityCounts(0, 0, 0)) == (0.0, 0.0, 0.0)


def test_only_iob_tags_mark_entities() -> None:
    assert mark_entities(TAGS)
    assert not mark_entities(["NOUN", "VERB"])
    assert not mark_entities(["O"])


def a_model(family: str, **more: Any) -> Any:
    torch.manual_seed(3)
    model = Model(family=family, config={**MODEL, "pad_token_id": 0, **more}, labels=list(TAGS), dropout=0.0)
    return construct(model, architecture_config(model, vocabulary=97), "token_classification").eval()


def a_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    tokens, labels = (torch.randint(low, high, (4, 12), generator=generator) for low, high in ((1, 97), (0, 4)))
    mask = torch.ones_like(tokens)
    tokens[1, 7:], mask[1, 7:], labels[1, 7:], labels[:, 0] = 0, 0, IGNORED, IGNORED
    return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_loss_and_gradient_are_those_of_transformers(family: str) -> None:
    ours, theirs, batch = a_model(family), a_model(family), a_batch()
    expected = theirs(**batch).loss
    expected.backward()
    objective = TokenClassification(Loss(), list(TAGS))
    found = objective.measure(ours, batch).losses["loss"] / objective.counts(batch)["loss"]
    found.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    for a, b in zip(theirs.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-6)


def test_metrics_are_those_of_all_rows_together() -> None:
    model, batch = a_model("bert"), a_batch()
    objective = TokenClassification(Loss(), list(TAGS))
    halves = [{name: tensor[part] for name, tensor in batch.items()} for part in (slice(0, 1), slice(1, 4))]
    parts = [objective.measure(model, half).observed for half in halves]
    summed = {name: parts[0][name] + parts[1][name] for name in parts[0]}
    found = objective.metrics(Totals({"loss": 0.0}, summed, objective.counts(batch)))
    whole = objective.measure(model, batch).observed
    assert found == objective.metrics(Totals({"loss": 0.0}, whole, objective.counts(batch)))
    predicted, total = model(**batch).logits.argmax(-1), EntityCounts(0, 0, 0)
    for row, labels in zip(predicted, batch["labels"], strict=True):
        kept = labels != IGNORED
        total += count_entities(*([TAGS[one] for one in values[kept]] for values in (row, labels)))
    assert (found["precision"], found["recall"], found["f1"]) == precision_recall_f1(total)
    names = ["NOUN", "VERB", "X", "Y"]
    assert "entities" not in TokenClassification(Loss(), names).measure(model, batch).observed


def test_a_pipeline_shows_the_tags_of_the_recipe() -> None:
    model = a_model("bert", vocab_size=97)
    found = pipeline("token-classification", model=model, tokenizer=tiny_wordpiece(), aggregation_strategy="first")
    tags = {one["entity_group"] for one in found("the weight of a token")}
    assert tags <= {"LONG", "SHORT", "O"}
