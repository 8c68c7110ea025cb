"""ROUGE by hand, against the package rouge-score, and in the evaluation of an encoder–decoder."""

from __future__ import annotations

import random

import pytest
from rouge_score.rouge_scorer import RougeScorer

from shardyard.errors import DataError
from shardyard.objectives import rouge as module
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.make import make_objective
from shardyard.objectives.registry import objective_spec
from shardyard.objectives.rouge import first_words, rouge
from shardyard.recipe.schema import Evaluate

WORDS = ["The", "cats", "running.", "dog's", "a1", "naïve-b", "jumped", "jumps,", "3.5", "ÄÖ", "relational"]


def test_rouge_by_hand() -> None:
    found = rouge(["the cat sat on the mat"], ["The cat lay on a mat."])
    assert found["rouge1"] == pytest.approx(2 * 4 / 12)
    assert found["rouge2"] == pytest.approx(2 * 1 / 10)
    assert found["rouge_l"] == pytest.approx(2 * 4 / 12)
    assert rouge(["a b c d"], ["d c b a"])["rouge_l"] == 0.25
    assert rouge(["", "word"], ["", "word"]) == {"rouge1": 0.5, "rouge2": 0.0, "rouge_l": 0.5}


@pytest.mark.parametrize("stemmed", [False, True])
def test_scores_are_those_of_rouge_score(stemmed: bool) -> None:
    generator, scorer = random.Random(0), RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmed)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(0, 12))) for _ in range(200)]
    hypotheses, references = texts[:100], texts[100:]
    expected = [scorer.score(*pair) for pair in zip(references, hypotheses, strict=True)]
    found = rouge(hypotheses, references, stemmed=stemmed)
    for name, theirs in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rouge_l", "rougeL")):
        assert found[name] == pytest.approx(sum(one[theirs].fmeasure for one in expected) / 100)


def test_texts_that_will_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for hypotheses, references in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(DataError, match="give the same number of both, at least one"):
            rouge(hypotheses, references)
    monkeypatch.setattr(module, "missing", lambda name: [name])
    with pytest.raises(DataError, match=r"evaluate\.rouge: stemmed takes Porter's rules from nltk: `pip install "):
        rouge(["a"], ["a"], stemmed=True)


@pytest.mark.parametrize("how", ["off", "plain", "stemmed"])
def test_summaries_are_compared_with_the_first_words_of_their_sources(how: str) -> None:
    inputs = ObjectiveInputs(evaluate=Evaluate(generate_rows=2, rouge=how), sequence_length=16)
    objective = make_objective("seq2seq", inputs)
    rows = [("a cat sat", "the cats sat", "the dog ran and a cat sat"), ("b", "b", "b c")]
    found = objective.score(rows)
    names = objective_spec("seq2seq").metrics.keys() - {"perplexity"}
    assert found.keys() == (names if how != "off" else {name for name in names if "rouge" not in name})
    if how != "off":
        lead = [first_words(row[2], like=row[1]) for row in rows]
        assert lead == ["the dog ran", "b"]
        references = [row[1] for row in rows]
        assert found["rouge_l_of_first_words"] == rouge(lead, references, stemmed=how == "stemmed")["rouge_l"]
        assert found["rouge1"] == pytest.approx(((2 if how == "stemmed" else 1) / 3 + 1) / 2)
