"""An installed wheel carries recipes, tokenizers and cluster templates, and needs no checkout to find them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).resolve().parents[2]
LOOK = """
import shardyard
from shardyard.recipe.catalog import shipped
print(shardyard.__file__)
print(shipped.find_tokenizer_spec("bytes"))
print(shipped.share_folder("cluster") / "local" / "README.md")
print(shipped.share_folder("recipes") / "schema.json")
"""


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds only what the wheel installs."""
    wheels, target = tmp_path_factory.mktemp("wheels"), tmp_path_factory.mktemp("installed")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(REPOSITORY))
    (wheel,) = wheels.glob("shardyard-*.whl")
    pip("install", "--no-deps", "--target", str(target), str(wheel))
    return target


def python(installed: Path, cwd: Path, *arguments: str) -> str:
    """What Python prints with the installed package first on its path, from a folder without a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_everything_comes_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    paths = [Path(line) for line in python(installed, tmp_path, "-c", LOOK).splitlines()]
    assert len(paths) == 4
    for path in paths:
        assert path.is_relative_to(installed)
        assert path.is_file()


def test_every_recipe_is_listed_by_name(installed: Path, tmp_path: Path) -> None:
    listed = python(installed, tmp_path, "-m", "shardyard.cli.main", "recipes", "list", "-q").split()
    root = REPOSITORY / "recipes"
    files = {path.relative_to(root).with_suffix("").as_posix() for path in root.rglob("*.yaml")}
    assert set(listed) == {name for name in files if not name.rpartition("/")[2].startswith("_")}
    assert "gpt/quickstart" in listed


def test_a_recipe_is_validated_by_name(installed: Path, tmp_path: Path) -> None:
    python(installed, tmp_path, "-m", "shardyard.cli.main", "validate", "gpt/quickstart")
