"""Recipes must not contain secrets: they are copied unchanged into run folders, model cards, job packages and W&B."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe
from shardyard.redaction import VARIABLE_PREFIX, secret_finder, variables_in

Finding = tuple[Path, str]


def secret_rules(recipe: Recipe) -> Iterator[Finding]:
    """Text that looks like a secret, and variables in URLs that a recipe may not use."""
    holds_secret = secret_finder()
    for path, text in _texts(recipe.model_dump(), (), holds_secret):
        if holds_secret(text):
            yield path, _advice("://" in text)
    for name in ("train", "validation"):
        for index, source in enumerate(getattr(recipe.data, name)):
            yield from ((("data", name, index, "path"), found) for found in _variables(source.path or ""))


def _advice(url: bool) -> str:
    where = (
        f"use an environment variable instead, such as ${{{VARIABLE_PREFIX}LOGIN}}, which is filled in where the data "
        "is read"
        if url
        else "remove it; tokens are read from variables such as HF_TOKEN, and those of URLs from ${{VARIABLE_PREFIX}…}"
    )
    return f"holds what looks like a secret, and recipes are copied to where others read them; {where}"


def _variables(path: str) -> Iterator[str]:
    if "://" not in path:
        return
    for variable in variables_in(path):
        if not variable.startswith(VARIABLE_PREFIX):
            yield (
                f"names the variable {variable}; only those that begin with {VARIABLE_PREFIX} are filled into URLs, so "
                "that a recipe from elsewhere cannot send others away"
            )


def _texts(value: Any, path: Path, holds_secret: Callable[[str], bool]) -> Iterator[tuple[Path, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            if isinstance(key, str) and holds_secret(key):
                yield path, key
            yield from _texts(item, (*path, key), holds_secret)
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index), holds_secret)
    elif isinstance(value, str):
        yield path, value
