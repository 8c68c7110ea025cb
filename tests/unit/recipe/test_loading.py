"""Reading recipes: inheritance, overrides, lines, the traps of YAML, and what random input does."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from shardyard.errors import RecipeError
from shardyard.recipe import batching
from shardyard.recipe.catalog.shipped import find_recipe, shipped_recipes
from shardyard.recipe.loading.load import dump_recipe, load_recipe, parse_recipe
from shardyard.recipe.loading.yaml_source import parse_value, read_document
from shardyard.recipe.schema import Checkpoint, Recipe
from support.measured import loaded

BASE = """\
name: base
model:
  family: gpt2
  config: {n_layer: 2, n_head: 2, n_embd: 64}
data:
  sequence_length: 128
  train:
    - {source: python-docs, weight: 0.7}
    - {source: python-docstrings, weight: 0.3}
train: {steps: 100, global_batch: 8}
optimizer: {lr: 1e-3}
checkpoint: {every: 10, keep: 7}
"""
FUZZ = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


def child(folder: Path, text: str, name: str = "child.yaml") -> str:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return str(path)


def problems(path: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [str(problem) for problem in caught.value.problems]


def test_a_shipped_recipe_loads_by_name_and_by_path() -> None:
    by_name = load_recipe("gpt/quickstart")
    assert by_name.recipe.name == "gpt-quickstart"
    assert by_name.path == find_recipe("gpt/quickstart.yaml")
    assert by_name.text.startswith("# yaml-language-server: $schema=../schema.json\n")
    assert by_name.sources == (by_name.path,)
    assert load_recipe(str(by_name.path)).recipe == by_name.recipe


@pytest.mark.parametrize("shipped", shipped_recipes(), ids=lambda shipped: shipped.name)
def test_shipped_recipes_are_valid_and_name_their_schema(shipped: object) -> None:
    path: Path = shipped.path  # type: ignore[attr-defined]
    depth = len(path.relative_to(find_recipe("gpt/quickstart").parents[1]).parents) - 1
    assert load_recipe(str(path)).text.splitlines()[0] == (
        f"# yaml-language-server: $schema={'../' * depth}schema.json"
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1e-3", 1e-3),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("010", 10),
        ("1_000", 1000),
        ("2024-01-01", "2024-01-01"),
        ("12:30:00", "12:30:00"),
        ("~", None),
        ("null", None),
        ("", None),
        ("true", True),
        ("'1'", "1"),
        ("[1, 2.5]", [1, 2.5]),
        ("{a: 1e3}", {"a": 1000.0}),
    ],
)
def test_values_follow_yaml_1_2(text: str, value: object) -> None:
    read = parse_value(text)
    assert read == value
    assert type(read) is type(value)


def test_extending_merges_mappings_and_replaces_lists(base: Path, tmp_path: Path) -> None:
    text = "extends: base.yaml\nname: child\nmodel: {config: {n_layer: 4}}\ndata:\n  train: [{source: python-code}]\n"
    loaded = load_recipe(child(tmp_path, text))
    assert loaded.recipe.name == "child"
    assert loaded.recipe.model.config == {"n_layer": 4, "n_head": 2, "n_embd": 64}
    assert [source.source for source in loaded.recipe.data.train] == ["python-code"]
    assert loaded.recipe.data.sequence_length == 128
    assert loaded.sources == (loaded.path.resolve(), base.resolve())
    assert loaded.text == text


def test_later_bases_win_and_paths_are_relative_to_the_file(base: Path, tmp_path: Path) -> None:
    child(tmp_path, "train: {steps: 70}\n", "seven.yaml")
    path = child(tmp_path, "extends: [../base.yaml, ../seven.yaml]\nname: deep\n", "below/deep.yaml")
    assert load_recipe(path).recipe.train.steps == 70


def test_a_shipped_recipe_can_be_extended_from_anywhere(tmp_path: Path) -> None:
    path = child(tmp_path, "extends: gpt/quickstart\nname: mine\ntrain: {steps: 60}\n")
    recipe = load_recipe(path).recipe
    assert (recipe.name, recipe.train.steps, recipe.train.global_batch) == ("mine", 60, 16)


def test_null_goes_back_to_the_default(base: Path, tmp_path: Path) -> None:
    path = child(tmp_path, "extends: base.yaml\ncheckpoint:\n  keep:\n")
    assert load_recipe(path).recipe.checkpoint == Checkpoint(every=10)
    assert load_recipe(str(base), ["checkpoint="]).recipe.checkpoint == Checkpoint()
    assert load_recipe(str(base), ["checkpoint.every=null"]).recipe.checkpoint == Checkpoint(keep=7)


def test_lines_point_into_the_file_that_a_value_comes_from(tmp_path: Path) -> None:
    child(tmp_path, BASE.replace("steps: 100", "steps: many"), "base.yaml")
    found = problems(child(tmp_path, "extends: base.yaml\n\ntrain: {global_batch: 0}\nx: 1\n"))
    assert len(found) == 3
    assert found[0].startswith(f"{tmp_path}/base.yaml:10: train.steps: ")
    assert found[1].startswith(f"{tmp_path}/child.yaml:3: train.global_batch: ")
    assert found[2].startswith(f"{tmp_path}/child.yaml:4: x: ")


def test_a_replaced_value_takes_its_line_with_it(base: Path, tmp_path: Path) -> None:
    text = "extends: base.yaml\n\n\ndata:\n  train:\n    - {source: python-code, weight: -1}\n"
    assert problems(child(tmp_path, text)) == [
        f"{tmp_path}/child.yaml:6: data.train.0.weight: must be at least 0.0, got -1"
    ]


def test_extending_what_is_not_there(base: Path, tmp_path: Path) -> None:
    (problem,) = problems(child(tmp_path, "name: x\nextends: bas.yaml\n"))
    assert problem.startswith(f"{tmp_path}/child.yaml:2: extends: 'bas.yaml' is neither a file beside child.yaml nor")
    assert problem.endswith("; did you mean 'base.yaml'?")
    assert "must be a path, a shipped name or a list" in problems(child(tmp_path, "extends: {a: 1}\n"))[0]


def test_a_broken_base_is_reported_as_itself(tmp_path: Path) -> None:
    child(tmp_path, "a: [\n", "base.yaml")
    assert problems(child(tmp_path, "extends: base.yaml\n"))[0].startswith(f"{tmp_path}/base.yaml:")


def test_extending_in_a_circle(tmp_path: Path) -> None:
    path = child(tmp_path, "extends: b.yaml\n", "a.yaml")
    child(tmp_path, "name: b\nextends: a.yaml\n", "b.yaml")
    assert problems(path) == [
        f"{tmp_path}/b.yaml:2: extends: 'a.yaml' leads back to {tmp_path}/a.yaml; a recipe cannot extend itself"
    ]


def test_overrides_reach_everywhere(base: Path) -> None:
    given = [
        "optimizer.lr=2e-4",
        "data.train.0.weight=0.5",
        "tracking.wandb.project=mine",
        "model.config.n_layer=3",
        "model.config.layer_norm_epsilon=1e-6",
        "sample.prompts=[a, 'b: c']",
        "description=a = b",
        "evaluate.early_stopping={patience: 3}",
        "evaluate.early_stopping.min_delta=0.1",
        "train.steps=40",
        "train.steps=50",
    ]
    loaded = load_recipe(str(base), given)
    recipe = loaded.recipe
    assert recipe.optimizer.lr == 2e-4
    assert [source.weight for source in recipe.data.train] == [0.5, 0.3]
    assert recipe.tracking.wandb.project == "mine"
    assert recipe.model.config["n_layer"] == 3
    assert recipe.model.config["layer_norm_epsilon"] == 1e-6
    assert recipe.sample.prompts == ["a", "b: c"]
    assert recipe.description == "a = b"
    assert recipe.evaluate.early_stopping is not None
    assert recipe.evaluate.early_stopping.min_delta == 0.1
    assert recipe.train.steps == 50
    assert loaded.overrides == tuple(given)


def test_a_wrong_override_says_which(base: Path) -> None:
    rule = "must be whole steps from 0 on, or a share of the run such as 0.1"
    assert problems(str(base), "train.steps=0", "schedule.warmup=x") == [
        f"-s schedule.warmup=x: schedule.warmup: {rule}, got 'x' (text)",
        "-s train.steps=0: train.steps: must be at least 1, got 0",
    ]


def test_dumping_and_parsing_give_the_same_recipe(base: Path, tmp_path: Path) -> None:
    recipe = load_recipe(str(base), ["description='no: 1e-4'", "tracking.tags=['1', 'true', '']"]).recipe
    text = dump_recipe(recipe)
    assert "decay_fraction: 0.2" in text
    assert load_recipe(child(tmp_path, text, "resolved.yaml")).recipe == recipe
    assert parse_recipe(read_document(tmp_path / "resolved.yaml", "resolved.yaml").data) == recipe


@pytest.mark.slow
@FUZZ
@example(text="\x85", number=1e-4)
@example(text=" \u2028 'x': \n\n\t#\ufeff", number=1e22)
@given(text=st.text(max_size=60), number=st.floats(min_value=1e-30, max_value=1e30))
def test_any_text_and_number_survive_a_dump(text: str, number: float, tmp_path: Path) -> None:
    recipe = loaded("gpt/quickstart")
    changed = recipe.model_copy(
        update={"description": text, "optimizer": recipe.optimizer.model_copy(update={"lr": number})}
    )
    assert load_recipe(child(tmp_path, dump_recipe(changed), "dumped.yaml")).recipe == changed


def test_parsing_plain_data_names_every_problem() -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe({"name": "x", "trian": {}}, "resolved.yaml")
    assert "resolved.yaml" in str(caught.value)
    assert "'trian'" in str(caught.value)
    assert "optimizer: is missing" in str(caught.value)


@FUZZ
@given(content=st.binary(max_size=300))
def test_random_bytes_are_a_recipe_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load_recipe(str(path))
    assert all(problem.message and problem.where for problem in caught.value.problems)


@FUZZ
@given(content=st.text(alphabet="abe01-_:,[]{}#&*!|>'\"%@`?~.\\ \n\t", max_size=200))
def test_random_yaml_is_a_recipe_error(content: str, tmp_path: Path) -> None:
    path = tmp_path / "fuzz.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError):
        load_recipe(str(path))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@FUZZ
@given(section=st.sampled_from(sorted(Recipe.model_fields)), value=VALUES)
def test_any_value_in_any_section_is_accepted_or_a_recipe_error(section: str, value: object, base: Path) -> None:
    with contextlib.suppress(RecipeError):
        load_recipe(str(base), [f"{section}={json.dumps(value)}"])


@FUZZ
@given(override=st.text(max_size=40))
def test_any_override_is_accepted_or_a_recipe_error(override: str, base: Path) -> None:
    with contextlib.suppress(RecipeError):
        load_recipe(str(base), [override])


@pytest.mark.parametrize(("batch", "streams"), [(1, 1), (32, 32), (64, 64), (96, 48), (122, 61), (128, 64), (4099, 1)])
def test_default_streams_are_the_largest_divisor_up_to_64(batch: int, streams: int) -> None:
    assert batching.default_streams(batch) == streams


def test_more_workers_than_the_default_need_no_streams_by_hand(base: Path) -> None:
    recipe = load_recipe(str(base), ["cluster.workers=128", "train.global_batch=256"]).recipe
    assert batching.streams_of(recipe, 128) == batching.streams_of(recipe, 256) == 256
    assert batching.streams_of(recipe, 64) == batching.streams_of(recipe, 1) == 64


def test_steps_follow_from_tokens_rounded_up(base: Path) -> None:
    def steps(*overrides: str) -> int | None:
        return batching.training_steps(load_recipe(str(base), ["checkpoint=", *overrides]).recipe)

    assert steps() == 100
    assert steps("train.steps=", "train.tokens=10240") == 10
    assert steps("train.steps=", "train.tokens=10241") == 11
