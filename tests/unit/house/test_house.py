"""Folders that share a name with a library stay plain folders, and every recipe carries the editor's schema line."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from support import sleeps

REPOSITORY = Path(__file__).resolve().parents[3]
PLAIN_FOLDERS = ("platform", "tokenizers", "recipes", "cluster")
RECIPES = sorted((REPOSITORY / "recipes").rglob("*.yaml"))
SCHEMA_LINE = "# yaml-language-server: $schema="
BOTH = "import platform, tokenizers; print(platform.python_version(), tokenizers.Tokenizer.__name__)"


def import_both(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", BOTH]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_no_plain_folder_is_a_package() -> None:
    for name in PLAIN_FOLDERS:
        assert (REPOSITORY / name).is_dir()
        assert not (REPOSITORY / name / "__init__.py").exists(), f"{name}/__init__.py would hide a library"
    for name in ("tokenizers", "recipes", "cluster"):
        assert not list((REPOSITORY / name).rglob("__init__.py"))


def test_libraries_of_the_same_name_win_in_the_root_of_the_repository() -> None:
    done = import_both(REPOSITORY)
    assert done.stdout.split() == [platform.python_version(), "Tokenizer"], done.stderr


def test_an_init_file_would_break_them(tmp_path: Path) -> None:
    """The reason for the rule, and the proof that the test above can fail."""
    (tmp_path / "tokenizers").mkdir()
    assert import_both(tmp_path).returncode == 0
    (tmp_path / "tokenizers" / "__init__.py").touch()
    assert import_both(tmp_path).returncode != 0


def test_no_folder_of_tests_is_called_after_them() -> None:
    folders = {path.name for path in (REPOSITORY / "tests").iterdir() if path.is_dir()}
    assert {"unit", "numerics"} <= folders
    assert not folders & set(PLAIN_FOLDERS)


def test_there_are_recipes() -> None:
    assert REPOSITORY / "recipes" / "gpt" / "quickstart.yaml" in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.relative_to(REPOSITORY / "recipes").as_posix())
def test_a_recipe_begins_with_the_schema_line(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(SCHEMA_LINE)
    schema = "sweeps/schema.json" if path.parent.name == "sweeps" else "schema.json"
    assert (path.parent / first.removeprefix(SCHEMA_LINE)).resolve() == REPOSITORY / "recipes" / schema


@pytest.mark.slow
def test_tests_wait_for_states_and_not_for_times() -> None:
    found = [(file, *fault) for file, faults in sleeps.found().items() for fault in faults]
    allowed = sleeps.ALLOWED.keys()
    wrong = [f"{file}:{line}: {name} {what}" for file, name, line, what in found if (file, name) not in allowed]
    assert wrong == [], "wait for a state with support.waiting.until, or say in support/sleeps.py why time matters"
    assert {(file, name) for file, name, _, _ in found} == allowed, "what is allowed is done somewhere"
