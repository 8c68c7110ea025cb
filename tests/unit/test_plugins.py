"""Code from outside: references to modules and files, entry points of packages, and what is refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from shardyard import plugins
from shardyard.errors import RecipeError, UsageError
from shardyard.launch.jobs.named_files import refuse_unseen_files
from shardyard.launch.run.architecture_cache import recall
from shardyard.objectives.registry import OBJECTIVES, objective_spec
from shardyard.recipe.code import code_files, origins
from shardyard.recipe.loading.load import dump_recipe, load_recipe, parse_recipe

SPEC = """from shardyard.objectives.spec import CAUSAL_LM, ObjectiveSpec

SPEC = ObjectiveSpec(
    name={name!r},
    loss=":make",
    head=CAUSAL_LM,
    columns={{"text": "text"}},
    rows="packed",
    task="text-generation",
    generates=True,
)
NUMBER = 1
"""
RECIPE = "extends: gpt/quickstart\nname: mine\nobjective: {objective}\n"
Install = Callable[..., None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Let packages bring entry points of the objectives, as (name, reference)."""

    def points(*brought: tuple[str, str]) -> None:
        group = "shardyard.objectives"
        found = tuple(EntryPoint(name, value, group) for name, value in brought)
        monkeypatch.setattr(plugins, "_entry_points", lambda asked: found if asked == group else ())

    objective_spec.cache_clear()
    yield points
    objective_spec.cache_clear()


@pytest.fixture
def beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe and the file of its objective, of which the current folder is the parent."""
    objective_spec.cache_clear()
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "shifted.py").write_text(SPEC.format(name="shifted"), encoding="utf-8")
    (folder / "recipe.yaml").write_text(RECIPE.format(objective="shifted.py:SPEC"), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_file_beside_the_recipe_is_found_from_the_current_folder(beside: Path) -> None:
    recipe = load_recipe(str(beside / "recipe.yaml")).recipe
    assert recipe.objective == "mine/shifted.py:SPEC"
    spec = objective_spec(recipe.objective)
    assert (spec.name, spec.loss) == ("shifted", "mine/shifted.py:make")
    assert parse_recipe(recipe.model_dump()) == recipe
    assert "objective: mine/shifted.py:SPEC" in dump_recipe(recipe)


def test_its_hash_is_recorded_and_its_sizes_are_not_kept(beside: Path) -> None:
    recipe = load_recipe(str(beside / "recipe.yaml")).recipe
    source = (beside / "shifted.py").read_bytes()
    digest = hashlib.sha256(b"shifted.py\0" + source + b"\0").hexdigest()
    expected = {"reference": "mine/shifted.py:SPEC", "package": None, "sha256": digest}
    assert origins(recipe) == {"objective": expected}
    assert recall(recipe) is None
    assert origins(load_recipe("gpt/quickstart").recipe) == {}


def test_it_travels_with_a_job(beside: Path) -> None:
    recipe = load_recipe(str(beside / "recipe.yaml")).recipe
    assert [path.as_posix() for path in code_files(recipe)] == ["mine/shifted.py"]
    refuse_unseen_files(recipe, "travel", None)
    refuse_unseen_files(recipe, "none", None)


def test_a_recipe_that_is_only_read_imports_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the dashboard does with run folders that others wrote."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loud.py").write_text("raise SystemExit('was imported')", encoding="utf-8")
    fields = load_recipe("gpt/quickstart").recipe.model_dump() | {"objective": "loud.py:SPEC"}
    assert parse_recipe(fields).objective == "loud.py:SPEC"


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        ("absent.py:SPEC", "there is no file 'absent.py'"),
        ("no_such_package.rotation:SPEC", "there is no module 'no_such_package' here; install the package"),
        ("mine/shifted.py:SPECK", "mine/shifted.py has no 'SPECK'; did you mean 'SPEC'?"),
        ("mine/shifted.py:NUMBER", "is no ObjectiveSpec but int"),
        ("mine/broken.py:SPEC", "mine/broken.py cannot be imported: ZeroDivisionError: division by zero"),
        ("mine/taken.py:SPEC", "calls itself 'causal_lm', which is a name of Shardyard's own; give it another name"),
    ],
)
def test_what_cannot_be_used_is_a_problem_of_the_recipe(beside: Path, objective: str, expected: str) -> None:
    (beside / "broken.py").write_text("1 / 0", encoding="utf-8")
    (beside / "taken.py").write_text(SPEC.format(name="causal_lm"), encoding="utf-8")
    (beside / "recipe.yaml").write_text(RECIPE.format(objective=objective), encoding="utf-8")
    with pytest.raises(RecipeError, match=re.escape(expected)):
        load_recipe(str(beside / "recipe.yaml"))


def test_an_installed_package_brings_an_objective_by_name(beside: Path, install: Install) -> None:
    install(("shifted", "mine/shifted.py:SPEC"))
    (beside / "recipe.yaml").write_text(RECIPE.format(objective="shifted"), encoding="utf-8")
    recipe = load_recipe(str(beside / "recipe.yaml")).recipe
    assert recipe.objective == "shifted"
    assert objective_spec("shifted").name == "shifted"


def test_unknown_names_are_refused_with_those_that_packages_bring(beside: Path, install: Install) -> None:
    install(("shifted", "mine/shifted.py:SPEC"))
    (beside / "recipe.yaml").write_text(RECIPE.format(objective="shiftd"), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"must be one of causal_lm, .*shifted.*did you mean 'shifted'\?"):
        load_recipe(str(beside / "recipe.yaml"))
    with pytest.raises(UsageError, match=r"there is no objective 'shiftd'; did you mean 'shifted'\?"):
        objective_spec("shiftd")


@pytest.mark.parametrize(
    ("brought", "expected"),
    [
        ([("causal_lm", "a:SPEC")], r"provides 'causal_lm' .* a name that Shardyard uses itself; rename"),
        (
            [("mine", "a:SPEC"), ("mine", "b:SPEC")],
            r"'mine' .* is provided by two packages, a:SPEC and b:SPEC; uninstall",
        ),
    ],
)
def test_names_that_collide_are_refused(install: Install, brought: list[tuple[str, str]], expected: str) -> None:
    install(*brought)
    with pytest.raises(UsageError, match=expected):
        plugins.installed("objectives", OBJECTIVES)


def test_an_entry_point_and_its_objective_have_one_name(beside: Path, install: Install) -> None:
    install(("other", "mine/shifted.py:SPEC"))
    with pytest.raises(UsageError, match="the entry point 'other' leads to an objective called 'shifted'"):
        objective_spec("other")
