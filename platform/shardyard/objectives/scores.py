"""Scores of predictions against labels or references, as pure functions that return a float.

They receive all predictions of an evaluation together, because most scores are not means over batches. Scores are
shares from 0 to 1 (`matthews` from -1 to 1; error rates exceed 1 if enough is inserted), but BLEU and chrF are from 0
to 100, as is customary.

    N: predictions, Q: queries, K: keys, C: classes, D: size of an embedding
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jiwer
import numpy.typing as npt
import sacrebleu
import torch
from torch import Tensor
from torch.nn import functional

from shardyard.errors import DataError
from shardyard.objectives.base import IGNORED

Classes = Sequence[int] | npt.NDArray[Any] | Tensor
"""Whole numbers, one a prediction; arrays and tensors of any shape."""
Vectors = Sequence[Sequence[float]] | npt.NDArray[Any] | Tensor
"""Embeddings of any length and precision; compared by their cosine."""

# Number of queries that are compared with all keys at a time: limits memory to this many rows of similarities.
_QUERIES_AT_A_TIME = 1024


def accuracy(predictions: Classes, labels: Classes) -> float:
    """Share of labels that are predicted correctly; labels of -100 are ignored."""
    predicted, labelled = _pairs("accuracy", predictions, labels)
    return _share(predicted == labelled)


def f1(
    predictions: Classes, labels: Classes, average: Literal["macro", "micro", "binary"] = "macro", positive: int = 1
) -> float:
    """Harmonic mean of precision and recall, 2·TP / (2·TP + FP + FN); labels of -100 are ignored.

    Args:
        average: "macro" is the mean score of all classes that are predicted or labelled, "micro" the score of the
            summed counts of all classes (equal to accuracy, because each example has one class), "binary" the score of
            the class `positive`, 0 if it is neither predicted nor labelled.

    Raises:
        DataError: nothing to score, different lengths, or "binary" with more than two classes.
    """
    counts = _count("f1", predictions, labels)
    each = 2 * counts.correct / (counts.predicted + counts.labelled)
    if average == "macro":
        return float(each.mean())
    if average == "micro":
        return float(counts.correct.sum() / counts.labelled.sum())
    if len({*counts.classes.tolist(), positive}) > 2:
        raise DataError(
            f"f1: average='binary' with {positive} as the positive class, and classes {_first(counts.classes)}; "
            "use 'macro' or 'micro' where there are more than two."
        )
    return float(each[counts.classes == positive].sum())


def matthews(predictions: Classes, labels: Classes) -> float:
    """Correlation of predicted and labelled classes: 1 all correct, 0 chance level, -1 (two classes) all wrong.

    With s examples, c of them correct, and class k predicted p_k times and labelled t_k times:
    (c·s - Σ p_k·t_k) / √((s² - Σ p_k²)·(s² - Σ t_k²)), 0 if either side has only one class.
    Matthews 1975 for two classes, Gorodkin 2004 for more. Labels of -100 are ignored.
    """
    counts = _count("matthews", predictions, labels)
    p, t, s = counts.predicted, counts.labelled, counts.labelled.sum()
    covariance = counts.correct.sum() * s - (p * t).sum()
    spread = (s * s - (p * p).sum()) * (s * s - (t * t).sum())
    return float(covariance / spread.sqrt()) if spread > 0 else 0.0


def perplexity(mean_nats: float) -> float:
    """exp of the mean loss per target in nats; infinity on overflow."""
    try:
        return math.exp(mean_nats)
    except OverflowError:
        return math.inf


def bleu(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of a corpus, 0 to 100 (Papineni et al. 2002), with sacrebleu's tokenizer 13a and exponential smoothing.

    Texts must not be tokenised (Post 2018, A Call for Clarity in Reporting BLEU Scores).
    """
    _same_number("bleu", hypotheses, references, "hypotheses", "references")
    return sacrebleu.corpus_bleu(hypotheses, [references]).score


def chrf(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """chrF of a corpus, 0 to 100: F2 of character n-grams up to 6 (Popović 2015), by sacrebleu."""
    _same_number("chrf", hypotheses, references, "hypotheses", "references")
    return sacrebleu.corpus_chrf(hypotheses, [references]).score


def word_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Number of inserted, deleted or replaced words, divided by the number of words in the references.

    Case and punctuation count; normalise both sides first if they should not.
    """
    _has_text("word_error_rate", hypotheses, references)
    return float(jiwer.wer(list(references), list(hypotheses)))


def character_error_rate(hypotheses: Sequence[str], references: Sequence[str]) -> float:
    """Like `word_error_rate`, for characters; spaces between words count, leading and trailing ones do not."""
    _has_text("character_error_rate", hypotheses, references)
    return float(jiwer.cer(list(references), list(hypotheses)))


def recall_at_k(
    queries: Vectors, keys: Vectors, k: int, query_ids: Classes | None = None, key_ids: Classes | None = None
) -> float:
    """Share of queries with a matching key among the k most similar ones, by cosine.

    Image to text with images as queries, text to image with texts as queries. A key matches if it has the id of the
    query, so an image may have several captions. A wrong key that is as similar as the best match is ranked before it,
    so embeddings that are all equal score 0, and so do NaN.

    Args:
        queries: [Q, D].
        keys: [K, D].
        k: at least 1; chance is about k / K.
        query_ids, key_ids: [Q] and [K]; without them, query i belongs to key i and Q must equal K.

    Raises:
        DataError: nothing to score, different lengths, or a query without a matching key.
    """
    assert k >= 1, k
    wanted, owned = _ids("recall_at_k", queries, query_ids), _ids("recall_at_k", keys, key_ids)
    if query_ids is None and key_ids is None:
        _same_number("recall_at_k", queries, keys, "queries", "keys")
    lonely = wanted[~torch.isin(wanted, owned)]
    if len(lonely):
        raise DataError(f"recall_at_k: no key has the ids {_first(lonely)} of queries; leave those queries out.")
    q, transposed = _unit(queries), _unit(keys).T
    parts = [slice(start, start + _QUERIES_AT_A_TIME) for start in range(0, len(q), _QUERIES_AT_A_TIME)]
    return _share(torch.cat([_found(q[part] @ transposed, wanted[part, None] == owned, k) for part in parts]))


def zero_shot_accuracy(images: Vectors, class_texts: Vectors, labels: Classes) -> float:
    """Accuracy of the class whose text is most similar to the image, by cosine (Radford et al. 2021, section 3.1).

    Args:
        images: [N, D], embeddings.
        class_texts: [C, D], one embedding per class, such as the mean over several prompts.
        labels: [N], row indices of `class_texts`; images labelled -100 are ignored.
    """
    _same_number("zero_shot_accuracy", images, labels, "images", "labels")
    if len(class_texts) == 0:
        raise DataError("zero_shot_accuracy: there are no classes; give one embedding a class.")
    return accuracy((_unit(images) @ _unit(class_texts).T).argmax(-1), labels)


class _Counts(NamedTuple):
    """Counts per class [C], in fp64, exact up to 2^53."""

    classes: Tensor
    correct: Tensor
    predicted: Tensor
    labelled: Tensor


def _count(name: str, predictions: Classes, labels: Classes) -> _Counts:
    predicted, labelled = _pairs(name, predictions, labels)
    classes, indices = torch.unique(torch.cat([predicted, labelled]), return_inverse=True)
    p, t = indices[: len(predicted)], indices[len(predicted) :]
    tallies = [torch.bincount(values, minlength=len(classes)).double() for values in (t[p == t], p, t)]
    return _Counts(classes, *tallies)


def _pairs(name: str, predictions: Classes, labels: Classes) -> tuple[Tensor, Tensor]:
    """Predicted and labelled classes [N], without labels of -100."""
    _same_number(name, predictions, labels)
    predicted, labelled = _integers(predictions), _integers(labels)
    if predicted.shape != labelled.shape:
        raise DataError(
            f"{name}: predictions are of shape {tuple(predicted.shape)} and labels of {tuple(labelled.shape)}; "
            "give one class for each label."
        )
    kept = labelled != IGNORED
    if not kept.any():
        raise DataError(f"{name}: all labels are {IGNORED}, which are left out; there is nothing to score.")
    return predicted[kept], labelled[kept]


def _integers(values: Classes) -> Tensor:
    numbers = torch.as_tensor(values)
    assert not numbers.is_floating_point(), f"classes and ids are whole numbers, not {numbers.dtype}"
    return numbers.long().cpu()


def _ids(name: str, vectors: Vectors, ids: Classes | None) -> Tensor:
    """The given ids, or the row numbers."""
    if ids is None:
        return torch.arange(len(vectors))
    _same_number(name, vectors, ids, "embeddings", "ids")
    return _integers(ids)


def _unit(vectors: Vectors) -> Tensor:
    """The vectors normalised to length 1, in fp32."""
    return functional.normalize(torch.as_tensor(vectors).detach().float().cpu(), dim=-1)


def _found(similarity: Tensor, right: Tensor, k: int) -> Tensor:
    """[Q], whether fewer than k wrong keys rank before the best matching one; `similarity` and `right` are [Q, K]."""
    best = similarity.masked_fill(~right, -torch.inf).amax(-1, keepdim=True)
    # Not `>=`, which is false for NaN.
    before = ~(similarity < best) & ~right
    return before.sum(-1) < k


def _share(hits: Tensor) -> float:
    return int(torch.count_nonzero(hits)) / hits.numel()


def _first(values: Tensor, count: int = 5) -> str:
    """The first few values, for a message."""
    shown = ", ".join(str(value) for value in values[:count].tolist())
    return f"{shown}, …" if len(values) > count else shown


def _same_number(name: str, first: Any, second: Any, firsts: str = "predictions", seconds: str = "labels") -> None:
    assert not isinstance(first, str), f"{name} takes a list of texts, not a text"
    assert not isinstance(second, str), f"{name} takes a list of texts, not a text"
    if len(first) != len(second):
        raise DataError(
            f"{name}: {len(first)} {firsts} and {len(second)} {seconds}; give the same number of both, in the same "
            "order."
        )
    if len(first) == 0:
        raise DataError(f"{name}: there are no {firsts}, so there is nothing to score; check the evaluation set.")


def _has_text(name: str, hypotheses: Sequence[str], references: Sequence[str]) -> None:
    _same_number(name, hypotheses, references, "hypotheses", "references")
    if not any(reference.strip() for reference in references):
        raise DataError(f"{name}: all references are empty, so there is no rate; check the transcripts.")
