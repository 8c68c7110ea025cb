"""The public names of the package: all there, and importing them costs nothing before they are used."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import shardyard
from shardyard.launch import api
from support.waiting import PATIENCE_SECONDS

HEAVY = ("torch", "pydantic", "ray", "typer", "rich", "ruamel.yaml", "transformers", "deepspeed", "numpy", "psutil")


def _modules_after(program: str) -> set[str]:
    found = subprocess.run(
        [sys.executable, "-c", f"{program}; import sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    return set(found.stdout.split())


def test_importing_the_package_imports_nothing_of_it() -> None:
    modules = _modules_after("import shardyard")
    assert modules.isdisjoint(HEAVY)
    assert {name for name in modules if name.startswith("shardyard.")} == set()


def test_the_names_of_the_api_need_neither_torch_nor_ray() -> None:
    names = ", ".join(shardyard.__all__)
    assert _modules_after(f"from shardyard import {names}").isdisjoint({"torch", "ray", "transformers", "deepspeed"})


@pytest.mark.parametrize("name", shardyard.__all__)
def test_each_public_name_is_there_and_described(name: str) -> None:
    found = getattr(shardyard, name)
    assert callable(found)
    assert inspect.getdoc(found)
    assert name in dir(shardyard)


def test_launch_is_the_function_whichever_is_imported_first() -> None:
    """The package `shardyard.launch` has the same name."""
    assert inspect.signature(shardyard.launch) == inspect.signature(api.launch)
    for program in ("import shardyard.launch.run.create", "pass"):
        _modules_after(f"{program}; from shardyard import launch; assert callable(launch)")
    with pytest.raises(shardyard.ShardyardError, match="no/such"):
        shardyard.launch("no/such")


def test_another_name_is_no_attribute() -> None:
    with pytest.raises(AttributeError, match="no attribute 'train'"):
        shardyard.train  # noqa: B018


def test_overrides_are_fields_or_texts_and_add_up() -> None:
    first = shardyard.load_recipe("gpt/quickstart", {"train.steps": 7, "optimizer.lr": 1e-3})
    second = shardyard.load_recipe(first, ["train.steps=9"])
    assert (first.recipe.train.steps, second.recipe.train.steps, second.recipe.optimizer.lr) == (7, 9, 1e-3)
    assert shardyard.load_recipe(first) is first
