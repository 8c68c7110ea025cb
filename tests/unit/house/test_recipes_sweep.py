"""Every YAML file under recipes/: it is whole, says what it is, validates and can be planned."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from shardyard.launch.run import architecture_cache
from shardyard.launch.run.initial import for_planning
from shardyard.recipe.catalog.shipped import share_folder, shipped_recipes, shipped_sweeps
from shardyard.recipe.loading.load import load_recipe
from support.measured import NO_RUNS, loaded, planned

FAMILIES = ("gpt", "bert", "moe", "seq2seq", "vision", "multimodal", "speech", "finetune")
SWEEPS = [shipped.path for shipped in shipped_sweeps()]
FILES = sorted(path for path in share_folder("recipes").rglob("*.y*ml") if path not in SWEEPS)
NAMES = [shipped.name for shipped in shipped_recipes()]
WRITER = runpy.run_path(str(Path(__file__).resolve().parents[3] / "docs" / "develop" / "write_recipes.py"))
_AUTHORS_AND_YEAR = re.compile(r"[A-Z][\w-]+.* (19|20)\d\d, \S")


def _extends(path: Path) -> list[str]:
    given = YAML(typ="safe", pure=True).load(path).get("extends", [])
    return [given] if isinstance(given, str) else list(given)


def test_the_sweep_sees_every_file() -> None:
    bases = [path for path in FILES if path.name.startswith("_")]
    assert len(FILES) == len(NAMES) + len(bases)
    assert len(NAMES) >= 45
    assert {path.suffix for path in FILES} == {".yaml"}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_recipes_of_both_sizes(family: str) -> None:
    own = [name for name in NAMES if name.startswith(f"{family}/")]
    large = {name for name in own if loaded(name).cluster.gpus_per_worker == 1}
    assert large
    assert set(own) - large


def test_every_folder_is_a_family() -> None:
    folders = {path.relative_to(share_folder("recipes")).parts[0] for path in FILES}
    assert folders == set(FAMILIES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_editors_find_the_schema(path: Path) -> None:
    schema = "# yaml-language-server: $schema="
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(schema)
    assert (path.parent / first.removeprefix(schema)).is_file()


def test_every_base_is_used() -> None:
    root = share_folder("recipes")
    bases = {path.relative_to(root).with_suffix("").as_posix() for path in FILES if path.name.startswith("_")}
    used = {name.removesuffix(".yaml") for path in FILES for name in _extends(path)}
    assert bases
    assert bases <= used


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is(name: str) -> None:
    recipe = loaded(name)
    for field in ("description", "paper", "expected"):
        text = getattr(recipe, field)
        assert text, field
        assert len(text.split()) >= 3, (field, text)
        assert not re.search(r"\b(TBD|TODO|to be measured)\b", text), (field, text)
    assert recipe.paper is not None
    assert _AUTHORS_AND_YEAR.match(recipe.paper), recipe.paper
    assert re.search(r"\d", recipe.expected or ""), "an expectation is a figure"


@pytest.mark.parametrize("name", NAMES)
def test_a_measured_result_says_how_many_seeds_it_is_of(name: str) -> None:
    expected = loaded(name).expected or ""
    if "shardyard launch" in expected:
        assert re.search(r"\b([Oo]ne seed|three seeds)\b", expected)
    assert ("±" in expected) == ("three seeds" in expected)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_it_itself(name: str) -> None:
    """Not by what it extends, which is another model."""
    path = share_folder("recipes") / f"{name}.yaml"
    own = YAML(typ="safe", pure=True).load(path)
    assert {"name", "description", "expected"} <= own.keys()


@pytest.mark.parametrize("name", NAMES)
def test_what_a_recipe_tells_to_type_is_accepted(name: str) -> None:
    """Every `shardyard launch` and every override in what it says of itself."""
    recipe = loaded(name)
    text = f"{recipe.description} {recipe.expected}"
    launched = re.findall(r"`shardyard launch ([^` ]+)", text)
    assert set(launched) <= set(NAMES)
    for told in re.findall(r"`([^`]*-s [^`]+)`", text):
        overrides = re.findall(r"-s (\S+)", told)
        launch = re.match(r"shardyard launch (\S+)", told)
        load_recipe(launch.group(1) if launch else name, overrides)


def test_names_are_unique() -> None:
    titles = [loaded(name).name for name in NAMES]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_can_be_planned(name: str) -> None:
    found = planned(name)
    plan = found.plan
    assert plan.architecture.parameters > 0
    assert plan.steps > found.recipe.schedule.warmup
    assert plan.flops > 0
    assert plan.micro_batch * plan.accumulation * plan.mesh.data == found.recipe.train.global_batch
    assert plan.deepspeed["train_batch_size"] == plan.micro_batch * plan.accumulation * plan.mesh.zero
    # Shapes alone: 540B weights take as long as 5M. Alone on a machine it is well below a second.
    assert found.seconds < 5.0


@pytest.mark.parametrize("name", NAMES)
def test_the_page_of_recipes_is_current(name: str) -> None:
    found = planned(name)
    line = WRITER["line"](name, found.recipe, found.plan.architecture)
    assert line in WRITER["PAGE"].read_text(encoding="utf-8"), "`python docs/develop/write_recipes.py` writes it anew"


@pytest.mark.parametrize("name", NAMES)
def test_the_sizes_that_come_with_recipes_are_current(name: str) -> None:
    found = planned(name)
    recipe = for_planning(found.recipe, NO_RUNS)
    told = architecture_cache.shipped_sizes([(recipe, found.plan.architecture)])
    shipped = json.loads((share_folder("recipes") / architecture_cache.SIZES).read_text(encoding="utf-8"))
    assert json.loads(told).items() <= shipped.items(), "`python docs/develop/write_recipes.py` writes them anew"


def test_the_page_of_recipes_lists_nothing_else() -> None:
    text = WRITER["PAGE"].read_text(encoding="utf-8")
    tables = text.partition(WRITER["START"])[2].partition(WRITER["END"])[0]
    assert sorted(re.findall(r"^\| `(\S+)` \|", tables, flags=re.MULTILINE)) == sorted(NAMES)
