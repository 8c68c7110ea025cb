"""Recipes, overrides, sweeps and run folders that use the old names of fields."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shardyard.errors import RecipeError
from shardyard.recipe.explain import explain_field, is_field
from shardyard.recipe.fields import field_at
from shardyard.recipe.loading.load import dump_recipe, load_recipe, parse_recipe
from shardyard.recipe.renamed import RENAMED, RenamedFieldWarning
from shardyard.recipe.sweep.load import load_sweep

BASE = """\
name: base
model:
  family: gpt2
  config: {n_layer: 2, n_head: 2, n_embd: 64}
  adapter: {whole: [lm_head.*]}
  pretrained: run:other
data:
  sequence_length: 128
  lanes: 4
  train: [{source: python-docs}]
train: {steps: 100, global_batch: 8}
optimizer: {lr: 1e-3}
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.yaml"
    path.write_text(BASE)
    return path


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_every_new_name_is_a_field_and_no_old_one_is(old: str, new: str) -> None:
    assert field_at(new.split(".")).info is not None
    with pytest.raises(LookupError):
        field_at(old.split("."))
    assert is_field(old)
    explained = explain_field(old)
    assert (explained.path, explained.note) == (new, f"{old} is now called {new}.")


def test_an_old_name_is_read_with_a_warning_that_has_its_line(base: Path) -> None:
    with pytest.warns(RenamedFieldWarning) as caught:
        recipe = load_recipe(str(base)).recipe
    assert recipe.data.streams == 4
    assert recipe.model.adapter is not None
    assert recipe.model.adapter.modules_to_save == ["lm_head.*"]
    texts = sorted(str(warning.message) for warning in caught)
    assert texts[0].endswith(
        "base.yaml:5: model.adapter.whole is now called model.adapter.modules_to_save; "
        "the old name still works, but will be removed"
    )
    assert "base.yaml:9: data.lanes is now called data.streams;" in texts[1]


def test_an_old_name_in_a_base_gives_way_to_the_new_one_and_the_reverse(base: Path) -> None:
    child = base.with_name("child.yaml")
    for field in ("streams", "lanes"):
        child.write_text(f"extends: base.yaml\ndata: {{{field}: 2}}\n")
        with pytest.warns(RenamedFieldWarning, match=r"data.lanes is now called data.streams"):
            assert load_recipe(str(child)).recipe.data.streams == 2


def test_an_override_may_use_the_old_name(base: Path) -> None:
    with pytest.warns(RenamedFieldWarning, match=r"-s data.lanes=8: data.lanes is now called data.streams"):
        assert load_recipe("gpt/quickstart", ["data.lanes=8"]).recipe.data.streams == 8
    with pytest.warns(RenamedFieldWarning, match=r"-s data.blind=true: data.blind is now called data.drop_inputs"):
        assert load_recipe("seq2seq/verses-en-es", ["data.blind=true"]).recipe.data.drop_inputs


def test_a_problem_with_an_old_name_stands_at_its_line(base: Path) -> None:
    base.write_text(BASE.replace("lanes: 4", "lanes: many"))
    with pytest.warns(RenamedFieldWarning), pytest.raises(RecipeError, match=r"base.yaml:9: data.streams: must be"):
        load_recipe(str(base))


def test_both_names_in_one_file_are_refused(base: Path) -> None:
    base.write_text(BASE.replace("  lanes: 4\n", "  lanes: 4\n  streams: 4\n"))
    with pytest.warns(RenamedFieldWarning), pytest.raises(RecipeError) as caught:
        load_recipe(str(base))
    assert "data.lanes: unknown key 'lanes'; it is now called data.streams" in str(caught.value)


def test_a_run_that_began_under_old_names_is_read_without_a_warning(tmp_path: Path) -> None:
    recipe = load_recipe("gpt/quickstart", ["data.streams=4"]).recipe
    old = dump_recipe(recipe).replace("streams: 4", "lanes: 4").replace("drop_inputs: false", "blind: false")
    assert "streams" not in old
    assert "drop_inputs" not in old
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(old)
    assert load_recipe(str(resolved)).recipe == recipe
    plain = recipe.model_dump()
    plain["data"] = {
        {"streams": "lanes", "drop_inputs": "blind"}.get(name, name): v for name, v in plain["data"].items()
    }
    assert parse_recipe(plain) == recipe
    assert "lanes" in plain["data"]


def test_sweeps_may_vary_an_old_name(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "name: s\nrecipe: gpt/quickstart\nsearch: {name: grid}\n"
        "parameters:\n  data.lanes: {values: [2, 4]}\noverrides: {train.steps: 20}\n"
    )
    with pytest.warns(RenamedFieldWarning, match=r"sweep.yaml:5: data.lanes is now called data.streams"):
        sweep = load_sweep(str(path)).sweep
    assert list(sweep.parameters) == ["data.streams"]
    path.write_text(path.read_text().replace("data.lanes", "optimizer.lr").replace("[2, 4]", "[0.1, 0.2]"))
    with pytest.warns(RenamedFieldWarning, match=r"-s data.lanes=4: data.lanes is now called data.streams"):
        assert load_sweep(str(path), ["data.lanes=4"]).base.recipe.data.streams == 4


def test_the_command_warns_in_one_line(base: Path) -> None:
    command = [sys.executable, "-m", "shardyard.cli.main", "validate", "gpt/quickstart", "-s", "data.lanes=8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ok: gpt-quickstart")
    assert done.stderr == (
        "Warning: -s data.lanes=8: data.lanes is now called data.streams; the old name still works, but will be "
        "removed.\n"
    )
