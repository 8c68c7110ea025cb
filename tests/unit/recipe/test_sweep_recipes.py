"""Sweeps as files: what is wrong is said with its line, and the trials follow from the file alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from ruamel.yaml import YAML

from shardyard.errors import RecipeError
from shardyard.launch.run.prepare import prepare
from shardyard.launch.run.world import world_of
from shardyard.recipe.catalog.json_schema import schema_text, sweep_schema, sweep_schema_path
from shardyard.recipe.catalog.shipped import shipped_recipes, shipped_sweeps
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.sweep.load import LoadedSweep, is_sweep, load_sweep
from shardyard.recipe.sweep.schema import Parameter
from shardyard.recipe.sweep.trials import (
    as_overrides,
    planned_trials,
    probes,
    rounded,
    shown,
    trial_count,
    trial_name,
    varying,
)

SHIPPED = [shipped.name for shipped in shipped_sweeps()]
LR = {"values": [1e-3, 3e-3]}


def written(folder: Path, **sections: Any) -> Path:
    base: dict[str, Any] = {"name": "tiny", "recipe": "gpt/quickstart", "parameters": {"optimizer.lr": LR}}
    path = folder / "sweep.yaml"
    with path.open("w") as file:
        YAML(typ="safe").dump({**base, **sections}, file)
    return path


def problems(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_sweep(str(path), overrides)
    return [str(problem) for problem in caught.value.problems]


def loaded(folder: Path, **sections: Any) -> LoadedSweep:
    return load_sweep(str(written(folder, **sections)))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_sweep_is_whole(name: str) -> None:
    found = load_sweep(name)
    assert found.sweep.description
    assert found.sweep.paper
    assert any(character.isdecimal() for character in found.sweep.expected or "")
    assert trial_count(found.sweep) >= 10
    assert found.base.recipe.cluster.workers == 1, "a trial in its own process, for two CPU cores"


def test_sweeps_are_no_recipes() -> None:
    assert {"sweeps/lr-batch", "sweeps/architecture", "sweeps/scaling-laws"} <= set(SHIPPED)
    assert not {recipe.name for recipe in shipped_recipes()} & set(SHIPPED)
    assert is_sweep("sweeps/lr-batch")
    assert not is_sweep("gpt/quickstart")
    assert not is_sweep("no/such")


def test_the_schema_of_sweeps_is_current_and_accepts_what_loads() -> None:
    schema = sweep_schema()
    assert sweep_schema_path().read_text(encoding="utf-8") == schema_text(schema), "`make schema` writes it"
    validator = Draft202012Validator(schema)
    for shipped in shipped_sweeps():
        data = YAML(typ="safe", pure=True).load(shipped.path)
        assert list(validator.iter_errors(data)) == []
        assert list(validator.iter_errors({**data, "serch": {}}))


@pytest.mark.slow
def test_the_shapes_of_the_architecture_search_cost_the_same() -> None:
    found = load_sweep("sweeps/architecture")
    costs = {}
    for trial in planned_trials(found.sweep):
        shape = (trial.parameters["model.config.n_layer"], trial.parameters["model.config.n_embd"])
        if shape in costs:  # heads cost nothing
            continue
        overrides = [*as_overrides(found.sweep.overrides), *as_overrides(trial.parameters)]
        recipe = load_recipe(found.sweep.recipe, overrides).recipe
        costs[shape] = prepare(recipe, world_of(recipe.cluster, local=True)).flops_per_token
    assert len(costs) >= 5
    middle = sum(costs.values()) / len(costs)
    assert all(abs(cost / middle - 1) < 0.03 for cost in costs.values()), costs


def test_a_grid_is_every_combination_in_order(tmp_path: Path) -> None:
    shapes = [{"model.dropout": 0.1, "train.seed": 1}, {"model.dropout": 0.0, "train.seed": 2}]
    found = loaded(tmp_path, parameters={"optimizer.lr": LR, "variant": {"settings": shapes}})
    trials = planned_trials(found.sweep)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert trials[1].parameters == {"optimizer.lr": 1e-3, "model.dropout": 0.0, "train.seed": 2}


@pytest.mark.slow
def test_random_draws_are_the_same_for_the_same_seed_and_differ(tmp_path: Path) -> None:
    parameters = {
        "optimizer.lr": {"min": 1e-4, "max": 1e-1, "scale": "log"},
        "schedule.warmup": {"min": 2, "max": 5, "integer": True},
    }
    settings = {"parameters": parameters, "budget": {"trials": 40}}
    first = planned_trials(loaded(tmp_path, search={"name": "random", "seed": 3}, **settings).sweep)
    assert first == planned_trials(loaded(tmp_path, search={"name": "random", "seed": 3}, **settings).sweep)
    assert first != planned_trials(loaded(tmp_path, search={"name": "random", "seed": 4}, **settings).sweep)
    rates = [trial.parameters["optimizer.lr"] for trial in first]
    assert len(set(rates)) == 40
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert 10 < sum(rate < 10**-2.5 for rate in rates) < 30, "even on the log scale"
    assert {trial.parameters["schedule.warmup"] for trial in first} == {2, 3, 4, 5}


def test_a_random_search_ends_when_nothing_new_is_left(tmp_path: Path) -> None:
    found = loaded(tmp_path, search={"name": "random"}, budget={"trials": 9})
    assert len(planned_trials(found.sweep)) == 2


def test_the_ends_of_ranges_are_checked_before_a_bayesian_search(tmp_path: Path) -> None:
    parameters = {"schedule.min_ratio": {"min": 0.0, "max": 1.5}, "optimizer.lr": LR}
    path = written(tmp_path, search={"name": "bayesian"}, budget={"trials": 4}, parameters=parameters)
    (problem,) = problems(path)
    assert "schedule.min_ratio: must be at most 1.0, got 1.5" in problem
    parameters["schedule.min_ratio"]["max"] = 1.0
    found = loaded(tmp_path, search={"name": "bayesian"}, budget={"trials": 4}, parameters=parameters)
    assert planned_trials(found.sweep) == []
    assert probes(found.sweep) == [
        {"schedule.min_ratio": 0.0, "optimizer.lr": 1e-3},
        {"schedule.min_ratio": 1.0, "optimizer.lr": 3e-3},
    ]


def test_values_of_ranges_stay_within_them() -> None:
    parameter = Parameter(min=0.123456789, max=0.987654321)
    assert rounded(parameter, 0.5555555555) == 0.555556
    assert rounded(parameter, 0.123456789) == 0.123457
    assert rounded(parameter, 0.987654321) == 0.987654
    assert rounded(parameter, 7.0) == 0.987654
    assert rounded(Parameter(min=0.1234564, max=1.0), 0.0) == 0.1234564
    assert rounded(Parameter(min=1, max=8, integer=True), 5.4) == 5


def test_names_of_runs_fit() -> None:
    assert trial_name("lr-batch", 7) == "lr-batch-007"
    assert len(trial_name("x" * 80, 7)) == 80
    assert trial_name("x" * 80, 7).endswith("-007")


def test_overrides_reach_the_sweep_and_the_recipe(tmp_path: Path) -> None:
    found = load_sweep(str(written(tmp_path)), ["budget.seconds=90", "train.steps=60", "name=other"])
    assert found.sweep.budget.seconds == 90
    assert found.sweep.name == "other"
    assert found.base.recipe.train.steps == 60
    assert found.base.recipe.name == "gpt-quickstart"
    # Trials are compared at the same steps: the clock of the quickstart is not theirs.
    assert found.base.recipe.train.minutes is None
    assert "-s train.stpes=3: train.stpes: unknown key 'stpes'" in problems(written(tmp_path), "train.stpes=3")[0]
    assert "is not key=value" in problems(written(tmp_path), "nonsense")[0]


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            {"parameters": {"train.minutes": {"values": [1.0]}}},
            "trials are compared at the same steps, not by the clock",
        ),
        ({"serch": {"name": "grid"}}, "unknown key 'serch'; did you mean 'search'?"),
        ({"parameters": {"optimizer.lr": {"values": [1.0], "maxx": 2}}}, "unknown key 'maxx'; did you mean 'max'?"),
        ({"parameters": {}}, "must have at least 1 entries"),
        ({"search": {"name": "gird"}}, "must be one of grid, random, bayesian or population, got 'gird' (text); did"),
        ({"budget": {"trials": "many"}}, "must be a whole number, got 'many' (text)"),
        ({"recipe": "gpt/quickstrat"}, "did you mean 'gpt/quickstart'?"),
        ({"parameters": {"optimzer.lr": LR}}, "unknown key 'optimzer'; did you mean 'optimizer'?"),
        ({"parameters": {"size": LR}}, "a name that is not a field goes with `settings`"),
        (
            {"parameters": {"optimizer.lr": {"values": [0.1, -1]}}},
            "got -1 (with optimizer.lr=-1)",
        ),
        ({"parameters": {"train.global_batch": {"values": [3, 16]}}}, "3 rows cannot be shared by 2 workers"),
        ({"parameters": {"cluster.workers": {"values": [1]}}}, "is the same in all trials"),
        ({"parameters": {"optimizer.lr": {}}}, "has to have one of: values, settings, or min and max"),
        ({"parameters": {"optimizer.lr": {"min": 1.0}}}, "a range has both min and max"),
        ({"parameters": {"optimizer.lr": {"min": 0.0, "max": 1.0, "scale": "log"}}}, "begins above 0"),
        ({"parameters": {"optimizer.lr": {"min": 1.0, "max": 2.0}}}, "a grid needs values, not a range"),
        ({"parameters": {"train.seed": {"min": 1.2, "max": 1.8, "integer": True}}}, "holds no whole number"),
        (
            {"parameters": {"a": {"settings": [{"optimizer.lr": 1}]}, "optimizer.lr": LR}},
            "is set in parameters.a as well",
        ),
        ({"overrides": {"name": "x"}}, "is set by the sweep"),
        ({"budget": {"trials": 1}}, "the grid has 2 combinations, 1 trials are allowed"),
        ({"search": {"name": "random"}}, "a search of the kind random needs a number of trials"),
        ({"objective": {"metric": "eval/validation/los"}}, "did you mean 'eval/validation/loss'?"),
        ({"objective": {"mode": "max"}}, "smaller values of eval/validation/loss are better"),
        ({"stopping": {"grace_steps": 500}}, "500 steps are not before the end of a run of 500 steps"),
        ({"stopping": {"grace_steps": 50}}, "the first evaluation is at step 100"),
        ({"population": {"every": 5}}, "belongs to search.name population"),
        ({"search": {"name": "population"}, "budget": {"trials": 4}}, "population needs the section population"),
        ({"scaling_law": {"test": {"train.stpes": 3}}}, "unknown key 'stpes'"),
        ({"scaling_law": {}, "stopping": {"grace_steps": 100}}, "fitted to trials that end"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(sections: dict[str, Any], expected: str, tmp_path: Path) -> None:
    found = problems(written(tmp_path, **sections))
    assert any(expected in problem for problem in found), found
    assert all("sweep.yaml:" in problem for problem in found), found


def test_all_contradictions_are_said_together(tmp_path: Path) -> None:
    population = {"every": 500}
    parameters = {"optimizer.weight_decay": {"values": [0.1]}, "optimizer.lr": {"settings": [{"optimizer.lr": 1.0}]}}
    path = written(
        tmp_path,
        search={"name": "population"},
        population=population,
        parameters=parameters,
        stopping={"grace_steps": 100},
        scaling_law={},
    )
    found = "\n".join(problems(path))
    for expected in (
        "optimizer.weight_decay cannot change when a run continues from a checkpoint",
        "members of a population change single fields",
        "a population replaces members instead of stopping them",
        "leave none in a run of 500 steps",
        "needs a number of trials",
        "sizes of a population are all the same",
    ):
        assert expected in found


def test_a_settings_axis_counts_as_one(tmp_path: Path) -> None:
    sizes = {"settings": [{"train.seed": seed} for seed in range(5)]}
    found = loaded(tmp_path, parameters={"seed": sizes, "optimizer.lr": LR})
    assert trial_count(found.sweep) == math.prod((5, 2))


def test_mappings_are_shown_by_their_fields() -> None:
    trials = [{"model.config": {"n_embd": size, "n_layer": 2}, "optimizer.lr": 0.1} for size in (32, 64)]
    assert shown(trials[0]) == "model.config.n_embd=32 model.config.n_layer=2 optimizer.lr=0.1"
    assert varying(trials) == ["model.config.n_embd"]
    assert varying(trials[:1]) == ["model.config.n_embd", "model.config.n_layer", "optimizer.lr"]
