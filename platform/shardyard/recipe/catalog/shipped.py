"""Paths of the recipes, tokenizer specs and cluster templates that ship with Shardyard.

In a checkout they are at the top level, in an installed wheel in `shardyard/share`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from shardyard.errors import Problem, RecipeError
from shardyard.suggest import nearest

PACKAGE = Path(__file__).resolve().parents[2]
# The folder of sweeps among the recipes.
SWEEPS = "sweeps"
KINDS = ("recipes", "tokenizers", "cluster")
# Corpora that every Python installation contains; `data/` reads them.
EMBEDDED_SOURCES = ("python-docs", "python-docstrings", "python-code")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True)
class ShippedRecipe:
    """A recipe that comes with Shardyard: `name` for commands (`gpt/quickstart`), `path` of its file."""

    name: str
    path: Path


def share_folder(kind: str, package: Path = PACKAGE) -> Path:
    """The folder of `kind` ("recipes", "tokenizers" or "cluster") in an installed wheel or a checkout."""
    assert kind in KINDS, kind
    installed = package / "share" / kind
    return installed if installed.is_dir() else package.parents[1] / kind


def shipped_recipes() -> list[ShippedRecipe]:
    """All shipped recipes by name. Files whose name starts with `_` are bases for others, not recipes."""
    return [found for found in _shipped() if not found.name.startswith(f"{SWEEPS}/")]


def shipped_sweeps() -> list[ShippedRecipe]:
    """All shipped sweeps by name, such as `sweeps/lr-batch`."""
    return [found for found in _shipped() if found.name.startswith(f"{SWEEPS}/")]


def _shipped() -> list[ShippedRecipe]:
    root = share_folder("recipes")
    paths = sorted(path for path in root.rglob("*.yaml") if not path.name.startswith("_"))
    return [ShippedRecipe(path.relative_to(root).with_suffix("").as_posix(), path) for path in paths]


def shipped_file(name: str) -> Path | None:
    """The shipped recipe or base of this name, with or without `.yaml`; None if there is none."""
    if _NAME.fullmatch(name) is None:
        return None
    path = share_folder("recipes") / (name if name.endswith(".yaml") else f"{name}.yaml")
    return path if is_file(path) else None


def find_recipe(name_or_path: str) -> Path:
    """The file for a name: an existing path, else a shipped recipe.

    Raises:
        RecipeError: (a UsageError) neither exists; the message suggests the most similar name.
    """
    path = Path(os.path.expanduser(name_or_path))
    if is_file(path):
        return path
    shipped = shipped_file(name_or_path)
    if shipped is not None:
        return shipped
    raise RecipeError(name_or_path, [Problem(name_or_path, "", _missing_message(name_or_path, path))])


def find_tokenizer_spec(name: str) -> Path | None:
    """The YAML spec in tokenizers/ of this name, such as `bytes`; None if there is none."""
    if _NAME.fullmatch(name) is None:
        return None
    path = share_folder("tokenizers") / f"{name}.yaml"
    return path if is_file(path) else None


def tokenizer_specs() -> list[str]:
    """Names of the shipped tokenizer specs."""
    return sorted(path.stem for path in share_folder("tokenizers").glob("*.yaml"))


def is_file(path: Path) -> bool:
    """Whether the file (or pipe) exists; an invalid file name counts as missing."""
    return _exists(path) and not path.is_dir()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name too long for the file system, or with a NUL byte
        return False


def _missing_message(name: str, path: Path) -> str:
    if name and _exists(path):
        return "is a directory; name a recipe file in it"
    names = [recipe.name for recipe in _shipped()]
    stem = name.removesuffix(".yaml")
    match = nearest(stem, names) or next((n for n in names if n.rpartition("/")[2] == Path(stem).name), None)
    hint = f"did you mean {match!r}? " if match else ""
    return f"no such file, nor a shipped recipe; {hint}`shardyard recipes list` shows all"
