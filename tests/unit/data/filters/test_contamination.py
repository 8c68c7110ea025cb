"""Documents that evaluation sets contain: which n-grams are compared, how much may be shared, what is too short."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shardyard.data.filters.contamination import compared_words, index_of, overlap
from shardyard.data.filters.outcome import Removed
from shardyard.data.sources.sources import steps_of
from shardyard.errors import DataError
from shardyard.recipe.sections.filters import Decontaminate, Step

QUESTION = " ".join(f"q{n}" for n in range(20))


def settings(**options: object) -> Decontaminate:
    return Decontaminate.model_validate({"against": [{"path": "x"}], **options})


def test_words_are_compared_without_case_and_punctuation() -> None:
    assert compared_words("It's a “Test”, 1,000 times!") == ["it", "s", "a", "test", "1", "000", "times"]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        # 13 words in a row are one n-gram, 12 none.
        (" ".join(f"q{n}" for n in range(13)), 1.0),
        (" ".join(f"q{n}" for n in range(12)) + " x y", 0.0),
        # Of 20 words, 8 n-grams; of 5 others before and after them, 18 of which 8 are shared.
        (QUESTION.upper() + "!", 1.0),
        (f"a b c d e {QUESTION} v w x y z", 8 / 18),
    ],
)
def test_the_share_of_common_ngrams(text: str, share: float) -> None:
    index = index_of(settings(), [QUESTION])
    assert overlap(text, 13, index) == pytest.approx(share)


def test_the_share_agrees_with_sets_of_words() -> None:
    """The same by sets of tuples, for documents with parts of several evaluation texts."""
    texts = [" ".join(f"w{(n * k) % 31}" for n in range(40)) for k in range(2, 6)]
    documents = [" ".join(f"w{(n * k) % 37}" for n in range(80)) + f" {texts[k % 4][:60]}" for k in range(2, 9)]
    known = {tuple(text.split()[i : i + 5]) for text in texts for i in range(len(text.split()) - 4)}
    index = index_of(settings(ngram=5, min_ngram=5), texts)
    for document in documents:
        own = [tuple(document.split()[i : i + 5]) for i in range(len(document.split()) - 4)]
        assert overlap(document, 5, index) == pytest.approx(sum(one in known for one in own) / len(own))


def test_a_short_evaluation_text_is_compared_as_a_whole() -> None:
    index = index_of(settings(), ["one two three four five six seven eight", "too short"])
    assert (index.num_texts, index.num_short, sorted(index.ngrams)) == (2, 1, [8])
    assert overlap("zero one two three four five six seven eight nine", 13, index) == 1.0
    assert overlap("zero one two three four five six seven nine", 13, index) == 0.0


def test_nothing_to_look_for_is_an_error() -> None:
    with pytest.raises(DataError, match="of 1 evaluation texts none has min_ngram 8 words"):
        index_of(settings(), ["too short"])


def test_evaluation_sets_are_sources(tmp_path: Path) -> None:
    rows = [{"question": QUESTION, "answer": " ".join(f"a{n}" for n in range(14))}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    against = [{"path": str(tmp_path / "test.jsonl"), "text_columns": ["question", "answer"]}]
    steps = steps_of([Step.model_validate({"decontaminate": {"against": against, "max_overlap": 0.5}})])
    removed = Removed("decontaminate: shares more than 0.5 of its 13-grams with an evaluation set")
    assert steps.clean(rows[0]["answer"]) == removed
    assert steps.clean(QUESTION) == removed
    half = f"{QUESTION} {' '.join('x' * n for n in range(1, 9))}"  # 8 of 16 n-grams
    assert steps.clean(half) == half
