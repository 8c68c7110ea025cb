"""Steps that a recipe skips, and settings of anomalies that would have no effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import RecipeError
from shardyard.recipe.lengths import skipped_steps
from shardyard.recipe.rules.rules import check
from support.tiny import tiny_recipe, write_corpus


def problems(folder: Path, **sections: Any) -> list[tuple[str, str]]:
    return [
        (".".join(map(str, path)), message) for path, message in check(tiny_recipe(write_corpus(folder, 4), **sections))
    ]


def test_numbers_and_spans_are_steps() -> None:
    assert skipped_steps([3, "5-7", "7-7"]) == {3, 5, 6, 7}


@pytest.mark.parametrize(
    ("entries", "path", "text"),
    [
        (["7-5"], "train.skip_steps.0", "is 7-5; write the first and the last step, from 1 on, such as 1500-1700"),
        (["0-2"], "train.skip_steps.0", "is 0-2; write the first"),
        ([3, 21], "train.skip_steps.1", "is 21, and the run has 20 steps; remove it"),
        (["1-20"], "train.skip_steps", "skips all 20 steps; leave some"),
    ],
)
def test_steps_that_cannot_be_skipped_are_named(tmp_path: Path, entries: list[Any], path: str, text: str) -> None:
    ((where, message),) = problems(tmp_path, train={"skip_steps": entries})
    assert where == path
    assert message.startswith(text)


@pytest.mark.parametrize("entry", [0, -3, "a-b", 1.5, True])
def test_what_is_no_step_is_refused(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(RecipeError, match="skip_steps"):
        tiny_recipe(write_corpus(tmp_path, 4), train={"skip_steps": [entry]})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("window", 64, "on_spike is continue"),
        ("signals", ["loss"], "on_spike is continue"),
        ("before", 2, "neither on_nan nor on_spike is rollback"),
        ("rate_factor", 0.1, "neither on_nan nor on_spike is lower_rate"),
        ("at_most", 3, "neither on_nan nor on_spike is skip, rollback or lower_rate"),
    ],
)
def test_a_setting_without_effect_is_refused(tmp_path: Path, name: str, value: Any, text: str) -> None:
    ((path, message),) = problems(tmp_path, anomalies={name: value})
    assert path == f"anomalies.{name}"
    assert text in message
