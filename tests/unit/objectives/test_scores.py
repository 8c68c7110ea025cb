"""Each score on examples worked out by hand, against a definition of its own or a reference, and where it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from shardyard.errors import DataError
from shardyard.objectives import scores

# Of class 0: TP 3, FP 1, FN 1. Of 1: TP 1, FP 2, FN 1. Of 2: TP 2, FP 0, FN 1.
LABELS = [0, 0, 0, 0, 1, 1, 2, 2, 2]
PREDICTED = [0, 0, 0, 1, 1, 0, 2, 2, 1]


def test_accuracy_is_the_share_that_is_right() -> None:
    assert scores.accuracy(PREDICTED, LABELS) == 6 / 9
    assert scores.accuracy(LABELS, LABELS) == 1.0


@pytest.mark.parametrize("average", ["macro", "micro"])
@pytest.mark.parametrize(
    "convert", [list, np.array, torch.tensor, lambda v: torch.tensor(v).view(3, 3).to(torch.int32)]
)
def test_lists_arrays_and_tensors_score_alike(convert: Callable[..., Any], average: Any) -> None:
    expected = scores.f1(tuple(PREDICTED), tuple(LABELS), average)
    assert scores.f1(convert(PREDICTED), convert(LABELS), average) == expected
    assert scores.accuracy(convert(PREDICTED), convert(LABELS)) == 6 / 9
    assert scores.matthews(convert(PREDICTED), LABELS if convert is list else convert(LABELS)) == pytest.approx(4 / 8)


def test_f1_of_a_worked_example() -> None:
    each = [6 / 8, 2 / 5, 4 / 5]
    assert scores.f1(PREDICTED, LABELS) == pytest.approx(sum(each) / 3)
    assert scores.f1(PREDICTED, LABELS, "macro") == scores.f1(PREDICTED, LABELS)
    assert scores.f1(PREDICTED, LABELS, "micro") == pytest.approx(6 / 9)


@pytest.mark.parametrize(
    ("predicted", "labelled", "positive", "expected"),
    [
        # TP 2, FP 1, FN 1
        ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 1, 4 / 6),
        ([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 0, 2 / 4),
        ([0, 0], [1, 1], 1, 0.0),
        ([1, 1], [1, 1], 1, 1.0),
        # Neither predicted nor labelled.
        ([0, 0], [0, 0], 1, 0.0),
        ([5, 7, 7], [5, 5, 7], 7, 2 / 3),
    ],
)
def test_binary_f1_is_that_of_one_class(
    predicted: list[int], labelled: list[int], positive: int, expected: float
) -> None:
    assert scores.f1(predicted, labelled, "binary", positive=positive) == pytest.approx(expected)


def test_a_class_that_is_only_predicted_counts_in_the_mean() -> None:
    # Class 0: 2·2 / (4 + 1); class 9, never right: 0.
    assert scores.f1([0, 0, 9], [0, 0, 0]) == pytest.approx((4 / 5 + 0) / 2)


def test_matthews_of_two_classes_is_the_phi_coefficient() -> None:
    tp, tn, fp, fn = 6, 3, 1, 2
    predicted = [1] * tp + [0] * tn + [1] * fp + [0] * fn
    labelled = [1] * tp + [0] * tn + [0] * fp + [1] * fn
    phi = (tp * tn - fp * fn) / math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    assert scores.matthews(predicted, labelled) == pytest.approx(phi)
    assert scores.matthews([1 - value for value in labelled], labelled) == pytest.approx(-1.0)


def test_matthews_is_nothing_where_a_side_has_one_class() -> None:
    assert scores.matthews([1, 1, 1], [1, 0, 1]) == 0.0
    assert scores.matthews([1, 0, 1], [1, 1, 1]) == 0.0
    assert scores.matthews(LABELS, LABELS) == pytest.approx(1.0)


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_scores_of_classes_follow_their_definitions(pairs: list[tuple[int, int]]) -> None:
    predicted, labelled = zip(*pairs, strict=True)
    each = []
    for c in sorted({*predicted, *labelled}):
        tp = sum(p == c == t for p, t in pairs)
        precision = tp / predicted.count(c) if c in predicted else 0.0
        recall = tp / labelled.count(c) if c in labelled else 0.0
        each.append(2 * precision * recall / (precision + recall) if tp else 0.0)
    assert scores.f1(predicted, labelled) == pytest.approx(sum(each) / len(each))
    assert scores.f1(predicted, labelled, "micro") == pytest.approx(scores.accuracy(predicted, labelled))
    one_hot = [np.eye(4)[list(side)] - np.eye(4)[list(side)].mean(0) for side in (predicted, labelled)]
    covariance, *variances = ((a * b).sum() for a, b in ((one_hot[0], one_hot[1]), *((x, x) for x in one_hot)))
    expected = covariance / math.sqrt(math.prod(variances)) if min(variances) > 1e-9 else 0.0
    assert scores.matthews(predicted, labelled) == pytest.approx(expected)


@pytest.mark.parametrize("score", [scores.accuracy, scores.f1, scores.matthews])
def test_labels_of_minus_100_are_left_out(score: Callable[..., float]) -> None:
    assert score([*PREDICTED, 0, 2, 7], [*LABELS, -100, -100, -100]) == score(PREDICTED, LABELS)


def test_perplexity_is_e_to_the_loss() -> None:
    assert scores.perplexity(math.log(257)) == pytest.approx(257)
    assert scores.perplexity(0.0) == 1.0
    assert scores.perplexity(1e4) == math.inf
    assert math.isnan(scores.perplexity(math.nan))


def test_bleu_of_a_worked_example() -> None:
    """Of 6 words 5 are right, of 5 pairs 3, of 4 triples 2, of 3 quadruples 1; both are of one length."""
    hypothesis, reference = "the cat sat on a mat", "the cat sat on the mat"
    expected = 100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25
    assert scores.bleu([hypothesis], [reference]) == pytest.approx(expected)
    # One of seven words is missing: a penalty for brevity, and all n-grams right.
    short, full = "there is a cat on the", "there is a cat on the mat"
    assert scores.bleu([short], [full]) == pytest.approx(100 * math.exp(1 - 7 / 6))


def test_bleu_is_of_the_corpus_and_not_a_mean_of_sentences() -> None:
    hypotheses = ["the cat sat on a mat", "there is a cat on the mat today"]
    references = ["the cat sat on the mat", "there is a cat on the mat today"]
    expected = 100 * (13 / 14 * 10 / 12 * 8 / 10 * 6 / 8) ** 0.25
    assert scores.bleu(hypotheses, references) == pytest.approx(expected)
    assert scores.bleu(references, references) == pytest.approx(100)
    assert scores.bleu(["", ""], references) == 0.0


def ngrams(text: str, order: int) -> list[str]:
    return [text[start : start + order] for start in range(len(text) - order + 1)]


def test_chrf_follows_popovic() -> None:
    hypothesis, reference = "the cat is here", "that cat was there"
    scored = []
    for order in range(1, 7):
        ours, theirs = ngrams(hypothesis.replace(" ", ""), order), ngrams(reference.replace(" ", ""), order)
        right = sum(min(ours.count(gram), theirs.count(gram)) for gram in set(ours))
        scored.append((right / len(ours), right / len(theirs)))
    precision, recall = (sum(column) / 6 for column in zip(*scored, strict=True))
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert scores.chrf([hypothesis], [reference]) == pytest.approx(expected)
    assert scores.chrf([reference], [reference]) == pytest.approx(100)
    assert scores.chrf([""], [reference]) == 0.0
    # Recall weighs more: half of the text is worth less than the text twice.
    assert scores.chrf([reference], [f"{reference} {reference}"]) < scores.chrf(
        [f"{reference} {reference}"], [reference]
    )


def edits(hypothesis: Sequence[str], reference: Sequence[str]) -> int:
    """Levenshtein's distance."""
    row = list(range(len(reference) + 1))
    for i, said in enumerate(hypothesis, 1):
        last, row[0] = row[0], i
        for j, wanted in enumerate(reference, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (said != wanted))
    return row[-1]


TRANSCRIPTS = ["please hold the line", "you have two new messages", "goodbye"]
HEARD = ["please hold a line", "you have new new messages now", ""]


def test_error_rates_are_edits_over_the_length_of_all_references() -> None:
    pairs = list(zip(HEARD, TRANSCRIPTS, strict=True))
    words = sum(edits(heard.split(), said.split()) for heard, said in pairs) / (4 + 5 + 1)
    characters = sum(edits(heard, said) for heard, said in pairs) / sum(map(len, TRANSCRIPTS))
    assert words == 0.4
    assert scores.word_error_rate(HEARD, TRANSCRIPTS) == pytest.approx(words)
    assert scores.character_error_rate(HEARD, TRANSCRIPTS) == pytest.approx(characters)
    assert scores.word_error_rate(TRANSCRIPTS, TRANSCRIPTS) == 0.0


def test_error_rates_divide_by_what_was_said_and_not_by_what_was_heard() -> None:
    assert scores.word_error_rate(["a b c d"], ["a"]) == 3.0
    assert scores.word_error_rate(["a"], ["a b c d"]) == 0.75
    assert scores.character_error_rate(["abcd"], ["a"]) == 3.0
    assert scores.word_error_rate(["noise"], ["Noise"]) == 1.0
    # An empty transcript among others adds what was heard to the edits.
    assert scores.word_error_rate(["a b", "noise"], ["a b", ""]) == 0.5


# Three images with two captions each; the third image is nearest to captions of the second.
IMAGES = torch.eye(4)[:3]
CAPTIONS = torch.tensor(
    [[9.0, 1, 0, 0], [0.2, 1, 0, 1], [0, 5, 1, 0], [0, 3, 2, 1], [2, 6, 1, 6], [0, 9, 0.1, 0]], dtype=torch.float32
)
OWNERS = [0, 0, 1, 1, 2, 2]


def ranks(queries: Tensor, keys: Tensor, query_ids: list[int], key_ids: list[int]) -> list[int]:
    """Where the first right key of each query stands in a sorted list, from 0."""
    found = []
    for query, owner in zip(queries, query_ids, strict=True):
        cosines = [float(torch.cosine_similarity(query, key, dim=0)) for key in keys]
        order = sorted(range(len(keys)), key=lambda index: -cosines[index])
        found.append(next(rank for rank, index in enumerate(order) if key_ids[index] == owner))
    return found


def test_recall_counts_images_that_find_any_of_their_captions() -> None:
    assert ranks(IMAGES, CAPTIONS, [0, 1, 2], OWNERS) == [0, 1, 2]
    found = [scores.recall_at_k(IMAGES, CAPTIONS, k, [0, 1, 2], OWNERS) for k in (1, 2, 3)]
    assert found == pytest.approx([1 / 3, 2 / 3, 1])


def test_recall_counts_captions_that_find_their_image() -> None:
    expected = ranks(CAPTIONS, IMAGES, OWNERS, [0, 1, 2])
    assert sorted(expected) == [0, 0, 0, 1, 1, 2]
    for k in (1, 2, 3):
        found = scores.recall_at_k(CAPTIONS, IMAGES, k, OWNERS, [0, 1, 2])
        assert found == pytest.approx(sum(rank < k for rank in expected) / 6)


def test_recall_of_pairs_needs_no_ids_and_no_lengths() -> None:
    generator = torch.Generator().manual_seed(3)
    queries = torch.randn(40, 8, generator=generator)
    keys = queries + 1.5 * torch.randn(40, 8, generator=generator)
    expected = ranks(queries, keys, list(range(40)), list(range(40)))
    for k in (1, 5):
        share = sum(rank < k for rank in expected) / 40
        assert 0.1 < share < 0.95
        assert scores.recall_at_k(queries * torch.arange(1, 41)[:, None], keys * 7, k) == share
        assert scores.recall_at_k(queries.numpy(), keys.tolist(), k) == share


def test_recall_is_the_same_however_many_queries_are_compared_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = torch.randn(40, 8, generator=torch.Generator().manual_seed(4))
    expected = scores.recall_at_k(keys + 0.01, keys, 1)
    assert expected == 1.0
    monkeypatch.setattr(scores, "_QUERIES_AT_A_TIME", 7)
    assert scores.recall_at_k(keys + 0.01, keys, 1) == expected


@pytest.mark.parametrize("value", [1.0, 0.0, math.nan, math.inf])
def test_a_model_that_tells_nothing_apart_recalls_nothing(value: float) -> None:
    same = torch.full((20, 4), value)
    assert scores.recall_at_k(same, same, 10) == 0.0


def test_a_key_that_is_as_similar_ranks_first() -> None:
    keys = torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    assert scores.recall_at_k(torch.tensor([[1.0, 0]]), keys, 1, [1], [0, 1, 2]) == 0.0
    assert scores.recall_at_k(torch.tensor([[1.0, 0]]), keys, 2, [1], [0, 1, 2]) == 1.0
    # Two right ones that are as similar are not in each other's way.
    assert scores.recall_at_k(torch.tensor([[1.0, 0]]), keys, 1, [1], [1, 1, 2]) == 1.0


def test_zero_shot_takes_the_class_with_the_most_similar_text() -> None:
    texts = torch.tensor([[1.0, 0], [0, 10]])
    images = torch.tensor([[3.0, 1], [1, 2], [2, 1], [0.1, 0.2]], dtype=torch.bfloat16)
    # The longer text would win the third image, were lengths not taken out.
    assert scores.zero_shot_accuracy(images, texts, [0, 1, 0, 0]) == 0.75
    assert scores.zero_shot_accuracy(images, texts, [0, 1, -100, -100]) == 1.0


ONE_CLASS: Literal["binary"] = "binary"
EMBEDDINGS = [[1.0, 0.0], [0.0, 1.0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scores.accuracy([], []), "accuracy: there are no predictions"),
        (
            lambda: scores.accuracy([1, 2, 3], [1, 2]),
            "accuracy: 3 predictions and 2 labels; give the same number of both",
        ),
        (
            lambda: scores.accuracy(np.zeros((2, 3), int), np.zeros((2, 4), int)),
            r"accuracy: predictions are of shape \(2, 3\) and labels of \(2, 4\)",
        ),
        (lambda: scores.f1([1], [-100]), "f1: all labels are -100, which are left out"),
        (lambda: scores.f1([], []), "f1: there are no predictions"),
        (
            lambda: scores.f1([0, 1, 2, 3, 4, 5], [0] * 6, ONE_CLASS),
            r"f1: average='binary' with 1 as the positive class, and classes 0, 1, 2, 3, 4, …; use 'macro'",
        ),
        (lambda: scores.f1([2, 3], [2, 2], ONE_CLASS), "with 1 as the positive class, and classes 2, 3; "),
        (lambda: scores.matthews([1], [1, 1]), "matthews: 1 predictions and 2 labels"),
        (lambda: scores.bleu([], []), "bleu: there are no hypotheses"),
        (lambda: scores.bleu(["a"], ["a", "b"]), "bleu: 1 hypotheses and 2 references"),
        (lambda: scores.chrf([], []), "chrf: there are no hypotheses"),
        (lambda: scores.chrf(["a"], []), "chrf: 1 hypotheses and 0 references"),
        (lambda: scores.word_error_rate([], []), "word_error_rate: there are no hypotheses"),
        (lambda: scores.word_error_rate(["a"], [" "]), "word_error_rate: all references are empty"),
        (lambda: scores.character_error_rate(["a"], [""]), "character_error_rate: all references are empty"),
        (lambda: scores.recall_at_k([], [], 1), "recall_at_k: there are no queries"),
        (lambda: scores.recall_at_k(EMBEDDINGS, EMBEDDINGS[:1], 1), "recall_at_k: 2 queries and 1 keys"),
        (lambda: scores.recall_at_k(EMBEDDINGS, EMBEDDINGS, 1, [1], [1, 2]), "recall_at_k: 2 embeddings and 1 ids"),
        (
            lambda: scores.recall_at_k(EMBEDDINGS, EMBEDDINGS, 1, [1, 7], [1, 2]),
            "recall_at_k: no key has the ids 7 of queries; leave those queries out",
        ),
        (lambda: scores.zero_shot_accuracy(EMBEDDINGS, EMBEDDINGS, [1]), "zero_shot_accuracy: 2 images and 1 labels"),
        (lambda: scores.zero_shot_accuracy(EMBEDDINGS, [], [0, 1]), "zero_shot_accuracy: there are no classes"),
    ],
)
def test_what_cannot_be_scored_is_told(call: Callable[[], float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        # Logits in place of classes would be cut to whole numbers.
        lambda: scores.accuracy(torch.tensor([0.2, 1.7]), [0, 1]),
        # A text is a sequence of texts, of one character each.
        lambda: scores.word_error_rate("a b", ["a b"]),
        lambda: scores.bleu(["a b"], "a b"),
        lambda: scores.recall_at_k(EMBEDDINGS, EMBEDDINGS, 0),
    ],
)
def test_what_would_be_taken_for_something_else_is_refused(call: Callable[[], float]) -> None:
    with pytest.raises(AssertionError):
        call()
