"""Weights by size, and the rules of mixtures and stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.recipe.batching import training_steps
from shardyard.recipe.mixture.stages import StageOrderError, spans_of
from shardyard.recipe.mixture.weights import by_size, shares, short_names
from shardyard.recipe.rules import rules
from shardyard.recipe.schema import Stage
from shardyard.recipe.shorten import shortened
from support.tiny import tiny_recipe, write_corpus


def test_weights_by_size_are_those_of_the_papers() -> None:
    """Against p = n^α / Σ n^α, with the α = 0.3 of mT5 (Xue et al. 2021) and some of its sizes."""
    sizes = [2733.0, 713.0, 347.0, 1.0]
    exact = [size**0.3 for size in sizes]
    assert shares(by_size(sizes, 1 / 0.3)) == pytest.approx([one / sum(exact) for one in exact], rel=1e-12)
    assert shares(by_size([3.0, 1.0], 1.0)) == pytest.approx([0.75, 0.25])
    assert shares(by_size([3.0, 1.0], 1e9)) == pytest.approx([0.5, 0.5])
    assert shares(by_size([1e300, 1e290], 0.5)) == pytest.approx([1.0, 1e-20])


def test_short_names_tell_sources_apart() -> None:
    given = ["/data/web/*.jsonl", "/data/code.jsonl", "org/name", "python-docs", "/other/code.jsonl"]
    assert short_names(given) == ["web/*.jsonl", "code.jsonl-1", "org/name", "python-docs", "code.jsonl-2"]


def test_stages_follow_each_other_in_steps_shares_and_tokens() -> None:
    stages = [Stage(at=10), Stage(at=0.5), Stage(at_tokens=10_001)]
    spans = spans_of(stages, [100, 100, 100, 200], 200, None)
    assert [(span.begin, span.steps) for span in spans] == [(0, 10), (10, 90), (100, 1), (101, 99)]
    # A share of the tokens, where these are given; the last stage has twice the tokens a step.
    by_tokens = spans_of([Stage(at=0.5)], [100, 200], None, 1001)
    assert [(span.begin, span.steps) for span in by_tokens] == [(0, 6), (6, 3)]
    with pytest.raises(StageOrderError, match="begins after step 5, which is not after stage 1 begins, after step 5"):
        spans_of([Stage(at=5), Stage(at=5)], [1, 1, 1], 10, None)
    with pytest.raises(StageOrderError, match="begins after step 10, and training ends after step 10"):
        spans_of([Stage(at=10)], [1, 1], 10, None)


def recipe_with(folder: Path, **sections: Any) -> Any:
    corpus = write_corpus(folder)
    data = {"train": [{"path": str(corpus), "holdout": 0.1}, {"source": "python-docs"}], **sections.pop("data", {})}
    return tiny_recipe(corpus, data=data, **sections)


def test_the_steps_of_a_run_with_stages_are_those_of_its_tokens(tmp_path: Path) -> None:
    recipe = recipe_with(
        tmp_path,
        data={"sequence_length": 32, "stages": [{"at": 0.5, "sequence_length": 64, "global_batch": 8}]},
        train={"steps": None, "tokens": 4096, "global_batch": 4},
    )
    assert rules.check(recipe) == []
    # 2048 / 128 steps, then 2048 / 512.
    assert training_steps(recipe) == 16 + 4
    short = shortened(recipe_with(tmp_path, data={"stages": [{"at": 10, "weights": [1.0, 2.0]}]}), 5, of=50)
    assert short.data.stages[0].at == 1


CASES: list[tuple[dict[str, Any], tuple[Any, ...], str]] = [
    ({"data": {"train": [{"source": "python-docs", "weight": 0.0}]}}, ("data", "train"), "weights of 0 alone"),
    (
        {"data": {"train": [{"source": "python-docs"}, {"source": "python-code", "weight": 0.0}]}},
        ("data", "train", 1, "weight"),
        "no stage gives the source a weight",
    ),
    ({"data": {"train": [{"source": "python-docs", "size": 3.0}]}}, ("data", "train", 0, "size"), "does nothing with"),
    (
        {"data": {"temperature": 2.0, "train": [{"source": "python-docs"}]}},
        ("data", "temperature"),
        "mixes several sources, and there is one",
    ),
    (
        {"data": {"temperature": 2.0, "train": [{"source": "python-docs"}, {"path": "org/name", "holdout": 0.1}]}},
        ("data", "train", 1, "size"),
        "org/name is not on this machine",
    ),
    (
        {"data": {"temperature": 2.0, "train": [{"source": "python-docs", "size": 5.0}, {"source": "python-code"}]}},
        ("data", "train", 1, "size"),
        "other sources have one",
    ),
    ({"data": {"train": [{"source": "python-docs", "tokens": 3}]}}, ("data", "train", 0, "tokens"), "less than a row"),
    (
        {"data": {"train": [{"source": "python-docs", "tokens": 64}]}, "train": {"steps": 50}},
        ("data", "train"),
        "allows 64 tokens in all",
    ),
    (
        {"data": {"validation": [{"source": "python-docs", "epochs": 1}]}},
        ("data", "validation", 0, "epochs"),
        "is for sources of data.train",
    ),
    ({"data": {"stages": [{"weights": [1.0, 1.0]}]}}, ("data", "stages", 0), "lacks its begin"),
    ({"data": {"stages": [{"at": 2, "at_tokens": 9, "weights": [1.0, 2.0]}]}}, ("data", "stages", 0), "two begins"),
    ({"data": {"stages": [{"at": 2}]}}, ("data", "stages", 0), "changes nothing"),
    ({"data": {"stages": [{"at": 2, "weights": [1.0]}]}}, ("data", "stages", 0, "weights"), "has 1 weights"),
    ({"data": {"stages": [{"at": 2, "weights": [1.0, -1.0]}]}}, ("data", "stages", 0, "weights"), "negative"),
    ({"data": {"stages": [{"at": 2, "weights": [0.0, 0.0]}]}}, ("data", "stages", 0, "weights"), "are 0 alone"),
    (
        {"data": {"stages": [{"at": 900, "weights": [1.0, 2.0]}]}, "train": {"steps": 50}},
        ("data", "stages", 0),
        "training ends after step 50",
    ),
    (
        {"data": {"stages": [{"at": 2, "global_batch": 6}]}, "train": {"steps": 50}, "cluster": {"workers": 4}},
        ("data", "stages", 0),
        "6 rows cannot be shared by 4 workers",
    ),
    (
        {"data": {"stages": [{"at": 2, "sequence_length": 4096}]}, "train": {"steps": 50}},
        ("data", "stages", 0),
        "4096 tokens are more than the",
    ),
    (
        {"data": {"stages": [{"at": 0.5, "global_batch": 8}]}, "train": {"steps": None, "epochs": 1}},
        ("data", "stages", 0),
        "train.epochs counts rows",
    ),
    ({"data": {"stages": [{"at": 2, "global_batch": 8}]}, "train": {"minutes": 1}}, ("data", "stages", 0), "measured"),
]


@pytest.mark.parametrize(("sections", "path", "text"), CASES, ids=[text for _, _, text in CASES])
def test_each_mistake_is_told_where_it_is(
    tmp_path: Path, sections: dict[str, Any], path: tuple[Any, ...], text: str
) -> None:
    found = rules.check(recipe_with(tmp_path, **sections))
    assert any(where == path and text in message for where, message in found), found
