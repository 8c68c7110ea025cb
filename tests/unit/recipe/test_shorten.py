"""Short trials: a recipe with fewer steps, and all that is measured in steps scaled with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.main import run
from shardyard.errors import RecipeError, UsageError
from shardyard.launch.jobs.entry import run_folder
from shardyard.recipe.catalog.shipped import shipped_recipes
from shardyard.recipe.loading.load import load_recipe, parse_recipe
from shardyard.recipe.rules import rules
from shardyard.recipe.schema import Recipe
from shardyard.recipe.shorten import as_trial, shortened


def recipe_of(**sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "short",
        "model": {"family": "gpt2"},
        "data": {"sequence_length": 64, "train": [{"source": "python-docs"}]},
        "train": {"global_batch": 8, "steps": 1000},
        "optimizer": {"lr": 1e-3},
    }
    return parse_recipe({**base, **sections})


def test_steps_shrink_in_proportion_and_shares_stay() -> None:
    recipe = recipe_of(
        schedule={"name": "step", "warmup": 100, "step_size": 250},
        evaluate={"every": 0.2},
        checkpoint={"every": 500},
        tracking={"every": 10},
    )
    short = shortened(recipe, 20, of=1000)
    assert (short.train.steps, short.schedule.warmup, short.schedule.step_size) == (20, 2, 5)
    assert (short.evaluate.every, short.checkpoint.every, short.tracking.every) == (0.2, 10, 1)
    least = shortened(recipe, 1, of=1000)
    assert (least.schedule.warmup, least.schedule.step_size, least.checkpoint.every) == (0, 1, 1)
    assert shortened(recipe_of(train={"global_batch": 8, "steps": 9, "minutes": 1.0}), 3, of=9).train.minutes is None
    by_tokens = shortened(recipe_of(train={"global_batch": 8, "tokens": 512_000}), 20, of=1000)
    assert (by_tokens.train.steps, by_tokens.train.tokens) == (20, None)


def test_a_trial_is_tagged_and_has_to_be_shorter() -> None:
    assert as_trial(recipe_of(tracking={"tags": ["mine"]}), 20, of=1000).tracking.tags == ["mine", "trial"]
    with pytest.raises(UsageError, match="--try 1000 does not shorten short, which trains 1000 steps; give fewer"):
        as_trial(recipe_of(), 1000, of=1000)


def test_a_submitted_trial_is_marked_where_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = tmp_path / "job.json"
    assert run(["submit", "gpt/quickstart", "--try", "20", "--dry-run", str(written), "-q"]) == 0
    spec = json.loads(written.read_text())["job.json"]
    assert spec["trial"] == {"steps": 20, "of": 500}
    assert (spec["recipe"]["train"]["steps"], spec["plan"]["warmup"], spec["tags"]) == (20, 2, ["trial"])
    folder = run_folder({**spec, "runs_dir": str(tmp_path / "runs")})
    assert folder.info().trial == {"steps": 20, "of": 500}
    assert run(["submit", "gpt/quickstart", "--try", "500", "--dry-run", str(written), "-q"]) == 2


SMALL = [found.name for found in shipped_recipes() if "seed: 1234" in Path(found.path).read_text(encoding="utf-8")]


@pytest.mark.parametrize("name", SMALL)
def test_every_small_recipe_has_a_short_trial_without_contradictions(name: str) -> None:
    recipe = load_recipe(name).recipe
    assert recipe.train.steps is not None
    before = rules.check(recipe)
    for steps in (1, 2, 5, 20):
        assert rules.check(shortened(recipe, steps, of=recipe.train.steps)) == before


def test_the_quickstart_takes_fewer_steps_as_it_is() -> None:
    assert load_recipe("gpt/quickstart", ["train.steps=40"]).recipe.train.steps == 40


def test_a_time_between_checkpoints_stays() -> None:
    assert shortened(recipe_of(checkpoint={"every": "30m"}), 20, of=1000).checkpoint.every == "30m"


@pytest.mark.parametrize("every", ["30", "m", "0.5s", "30 days", "-1h", ""])
def test_a_time_that_is_none_is_refused(every: str) -> None:
    with pytest.raises(RecipeError, match=r"or a time of at least a second such as 90s, 30m or 2h"):
        recipe_of(checkpoint={"every": every})
