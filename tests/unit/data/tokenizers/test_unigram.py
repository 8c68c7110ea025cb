"""Estimating Unigram models: against enumeration of all segmentations, and against the trainer of `tokenizers`."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from shardyard.data.tokenizers.unigram import Lattice, train_unigram
from support.tokenizer_cases import texts

PIECES = ["a", "b", "c", "ab", "bc", "abc", "ca"]
SCORES = np.log(np.array([0.1, 0.2, 0.05, 0.3, 0.15, 0.12, 0.08]))


def segmentations(text: str) -> list[list[str]]:
    """All ways to cut a text into PIECES."""
    found = []
    for cuts in itertools.product([False, True], repeat=len(text) - 1):
        bounds = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(text)]
        parts = [text[a:b] for a, b in itertools.pairwise(bounds)]
        if all(part in PIECES for part in parts):
            found.append(parts)
    return found


def score(parts: list[str]) -> float:
    return float(sum(SCORES[PIECES.index(part)] for part in parts))


def test_expected_counts_are_those_of_enumeration() -> None:
    words, weights = ["abc", "abcabca", "b", "cab"], np.array([3.0, 1.0, 2.0, 5.0])
    expected: Counter[str] = Counter()
    for word, weight in zip(words, weights.tolist(), strict=True):
        ways = segmentations(word)
        total = sum(math.exp(score(way)) for way in ways)
        for way in ways:
            for part in way:
                expected[part] += weight * math.exp(score(way)) / total
    counts = Lattice(words, PIECES).expected_counts(SCORES, weights)
    np.testing.assert_allclose(counts, [expected[piece] for piece in PIECES], rtol=1e-12)


def test_the_best_segmentation_is_that_of_enumeration() -> None:
    words = ["abc", "abcabca", "b", "cab"]
    lattice = Lattice(words, PIECES)
    best = [max(score(way) for way in segmentations(word)) for word in words]
    np.testing.assert_allclose(lattice.best(SCORES[lattice.pieces]), best, rtol=1e-12)


def test_a_selected_lattice_is_the_lattice_of_the_selected_pieces() -> None:
    words, weights = ["abcabca", "cab"], np.array([2.0, 1.0])
    kept = [0, 1, 2, 4, 6]
    new_ids = np.array([kept.index(i) if i in kept else -1 for i in range(len(PIECES))])
    selected = Lattice(words, PIECES).select(new_ids).expected_counts(SCORES[kept], weights)
    fresh = Lattice(words, [PIECES[i] for i in kept]).expected_counts(SCORES[kept], weights)
    np.testing.assert_array_equal(selected, fresh)


def test_a_frequent_word_becomes_a_piece_and_characters_stay() -> None:
    pieces = dict(train_unigram({"hello": 50, "hell": 3, "old": 2}, 7, alphabet=list("helod")))
    assert set(pieces) == {*"helod", "hello", "hell"}
    assert max(pieces, key=lambda piece: pieces[piece]) == "hello"
    assert sum(map(math.exp, pieces.values())) == pytest.approx(1.0, abs=0.05)


def test_the_order_of_the_words_does_not_matter() -> None:
    words = Counter(" ".join(texts()).split())
    alphabet = sorted(set("".join(words)))
    forwards = train_unigram(dict(sorted(words.items())), 250, alphabet=alphabet)
    backwards = train_unigram(dict(sorted(words.items(), reverse=True)), 250, alphabet=alphabet[::-1])
    assert forwards == backwards
    assert len(forwards) == 250


def test_characters_outside_the_alphabet_cut_words() -> None:
    pieces = dict(train_unigram({"ab#ab": 9, "#": 4}, 9, alphabet=["a", "b"]))
    assert set(pieces) == {"a", "b", "ab"}


def test_pieces_compress_at_least_as_well_as_those_of_the_library() -> None:
    documents = texts()
    cut = pre_tokenizers.Metaspace()
    words = Counter(word for text in documents for word, _ in cut.pre_tokenize_str(text))
    ours = Tokenizer(models.Unigram([("<unk>", 0.0), *train_unigram(words, 499, alphabet=_alphabet(words))], unk_id=0))
    library = Tokenizer(models.Unigram())
    ours.pre_tokenizer = library.pre_tokenizer = cut
    library.train_from_iterator(
        documents,
        trainers.UnigramTrainer(vocab_size=500, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False),
    )
    tokens = [sum(len(e.ids) for e in t.encode_batch(documents)) for t in (ours, library)]
    assert tokens[0] <= tokens[1] * 1.01


def _alphabet(words: Counter[str]) -> list[str]:
    return sorted(set("".join(words)))
