"""Pairs of segments: where they come from, that both kinds look alike, and that each token is read once."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import BertConfig, PreTrainedTokenizerFast

from shardyard.data.formats import FormatInputs, make_rows
from shardyard.data.formats.sentence_pairs import SentencePairs
from shardyard.data.formats.sentences import sentence_starts
from shardyard.errors import DataError
from shardyard.recipe.schema import Data, Masking, Source
from support.wordpieces import SPECIAL

DOCUMENTS, WORDS_EACH = 30, 120
STOP = 5


def numbered() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens tell their document and place: document d has words 0xd … of its own."""
    words = [f"{d}x{w}" for d in range(DOCUMENTS) for w in range(WORDS_EACH)]
    vocabulary = {token: n for n, token in enumerate([*SPECIAL.values(), ".", *words])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def numbered_texts(sentence_length: int = 6, words: int = WORDS_EACH) -> list[str]:
    texts = []
    for d in range(DOCUMENTS):
        names = [f"{d}x{w}" for w in range(words)]
        cuts = range(0, words, sentence_length)
        texts.append(" ".join(" ".join(names[at : at + sentence_length]) + " ." for at in cuts))
    return texts


def place(token: int) -> tuple[int, int]:
    """Document and number of a word."""
    return divmod(int(token) - STOP - 1, WORDS_EACH)


def places(tokens: Any) -> list[tuple[int, int]]:
    return [place(token) for token in tokens if token > STOP]


def pairs_format(*, length: int = 64, window: int = 256, **masking: Any) -> SentencePairs:
    recipe = Data(sequence_length=length, shuffle_window=window, train=[Source(path="unread")])
    settings = Masking(**{"short_probability": 0.0, **masking})
    made = make_rows("bert_pretraining", FormatInputs(recipe, numbered(), BertConfig(), settings))
    assert isinstance(made, SentencePairs)
    return made


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def consecutive(found: list[tuple[int, int]]) -> bool:
    return found == [(found[0][0], found[0][1] + n) for n in range(len(found))]


@pytest.mark.parametrize("short_probability", [0.0, 0.5])
def test_b_follows_a_or_is_of_another_document(short_probability: float) -> None:
    made = pairs_format(short_probability=short_probability)
    pairs = made.pieces(numbered_texts() * 4, generator())
    for pair in pairs:
        a, b = places(pair.first.tokens), places(pair.second.tokens)
        assert a
        assert b
        assert consecutive(a)
        assert consecutive(b)
        if pair.is_random:
            assert b[0][1] > 0, "an opening cannot follow anything"
        else:
            assert consecutive(a + b)
        assert len(pair.first) + len(pair.second) <= 61
    assert np.mean([pair.is_random for pair in pairs]) == pytest.approx(0.5, abs=0.06)
    by_document = pairs_format().pieces(numbered_texts(), generator())
    assert all(
        (places(pair.first.tokens)[0][0] != places(pair.second.tokens)[0][0]) == pair.is_random for pair in by_document
    )


def test_each_token_is_read_once() -> None:
    made = pairs_format(short_probability=0.1)
    read = []
    for pair in made.pieces(numbered_texts(), generator()):
        read += places(pair.first.tokens) + ([] if pair.is_random else places(pair.second.tokens))
    assert len(read) == len(set(read))
    missing = DOCUMENTS * WORDS_EACH - len(read)
    assert missing <= made.num_cut
    assert missing < 0.03 * DOCUMENTS * WORDS_EACH


def test_length_does_not_tell_the_kind_of_pair() -> None:
    texts = [text for n in range(20) for text in numbered_texts(3 + n % 9, words=30 + n)]
    pairs = pairs_format().pieces(texts, generator())
    kinds = [[len(p.first) + len(p.second) for p in pairs if p.is_random == kind] for kind in (False, True)]
    assert np.mean(kinds[0]) == pytest.approx(np.mean(kinds[1]), rel=0.07)
    a = [np.mean([len(p.first) for p in pairs if p.is_random == kind]) for kind in (False, True)]
    assert a[0] == pytest.approx(a[1], rel=0.07)


def test_documents_of_one_sentence_are_divided() -> None:
    made = pairs_format()
    texts = [" ".join(f"{d}x{w}" for w in range(12)) for d in range(DOCUMENTS)]
    pairs = made.pieces(texts, generator())
    kinds = [pair.is_random for pair in pairs]
    assert 5 < sum(kinds) < len(kinds) - 5
    # Half of the text, or of what a random B left of it.
    assert {len(pair.first) for pair in pairs} == {6, 3}
    # A single token makes no pair, and is counted.
    before = made.num_cut
    assert made.pieces(["0x0"], generator()) == []
    assert made.num_cut == before + 1


def test_long_sentences_are_divided_and_what_is_too_long_is_cut() -> None:
    made = pairs_format(length=32)
    texts = numbered_texts(100, words=100)
    pairs = made.pieces(texts, generator())
    assert all(len(pair.first) + len(pair.second) <= 29 for pair in pairs)
    assert {pair.is_random for pair in pairs} == {False, True}
    read = [p for pair in pairs for p in places(pair.first.tokens)]
    read += [p for pair in pairs if not pair.is_random for p in places(pair.second.tokens)]
    assert len(read) == len(set(read))
    assert DOCUMENTS * 100 - len(read) <= made.num_cut


def test_a_single_document_has_only_pairs_that_follow() -> None:
    assert not any(pair.is_random for pair in pairs_format().pieces(numbered_texts()[:1], generator()))
    with pytest.raises(DataError, match="shuffle_window to 2"):
        pairs_format(window=1)
    with pytest.raises(DataError, match="at least 7 tokens"):
        pairs_format(length=6)


def test_arrays_of_a_row() -> None:
    made, tokenizer = pairs_format(), numbered()
    pairs = made.pieces(numbered_texts(), generator())
    rows = [made.row(pair, generator(n)) for n, pair in enumerate(pairs)]
    for pair, row in zip(pairs, rows, strict=True):
        a, b = len(pair.first), len(pair.second)
        tokens = np.where(row["labels"] == -100, row["input_ids"], row["labels"])
        marks = [tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.sep_token_id]
        assert tokens[[0, a + 1, -1]].tolist() == marks
        assert np.array_equal(tokens[1 : a + 1], pair.first.tokens)
        assert np.array_equal(tokens[a + 2 : -1], pair.second.tokens)
        assert row["token_type_ids"].tolist() == [0] * (a + 2) + [1] * (b + 1)
        assert (row["labels"] != -100).sum() == round(0.15 * (a + b))
        assert int(row["next_sentence_label"]) == pair.is_random
    batch = made.collate(rows[:8])
    assert batch["next_sentence_label"].shape == (8,)
    assert batch["input_ids"].shape == batch["token_type_ids"].shape == batch["labels"].shape


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One. ", "Two! ", "Three? ", "Four"]),
        ("See e.g. This, cf. Smith et al. 2018. Next.", ["See e.g. This, cf. Smith et al. 2018. ", "Next."]),
        ("J. Smith wrote it. He did.", ["J. Smith wrote it. ", "He did."]),
        ("So am I. You too.", ["So am I. ", "You too."]),
        ('He said "no." Then he left.', ['He said "no." ', "Then he left."]),
        ("Version 3.11 is. it goes on", ["Version 3.11 is. it goes on"]),
        ("A title\n\nA text of two\nlines", ["A title\n\n", "A text of two\nlines"]),
        ("one.\n  \ntwo", ["one.\n  \n", "two"]),
        ("Wait... What", ["Wait... ", "What"]),
        ("你好。再见！", ["你好。", "再见！"]),
        ("End.\n", ["End.\n"]),
        ("", [""]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    starts = [*sentence_starts(text), len(text)]
    assert [text[first:last] for first, last in pairwise(starts)] == expected
