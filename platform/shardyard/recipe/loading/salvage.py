"""The valid part of a broken recipe, so that each mistake is reported once and other problems are still found."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from shardyard.recipe.fields import Path, UnknownFieldError, field_at, literal_values
from shardyard.recipe.schema import Recipe

# Placeholders for required values that no other section depends on, so that the rest can still be checked.
_PLACEHOLDERS: tuple[tuple[str, str, object], ...] = (("", "name", "unnamed"), ("optimizer", "lr", 1.0))


def mistyped_keys(data: dict[str, object], error: ValidationError) -> dict[Path, str]:
    """Unknown keys, by path, with the most likely intended key, unless that key is given as well."""
    found: dict[Path, str] = {}
    for item in error.errors():
        path: Path = tuple(item["loc"])
        if item["type"] != "extra_forbidden":
            continue
        try:
            field_at([str(part) for part in path])
        except UnknownFieldError as unknown:
            here = _at(data, path[:-1])
            taken = {name for other, name in found.items() if other[:-1] == path[:-1]}
            if unknown.meant is not None and isinstance(here, dict) and unknown.meant not in {*here, *taken}:
                found[path] = unknown.meant
    return found


def renamed(
    data: dict[str, object], places: Mapping[Path, str], keys: Mapping[Path, str]
) -> tuple[Any, dict[Path, str]]:
    """The data with these keys under their correct names, and the positions of everything in it."""
    mended, where = copy.deepcopy(data), dict(places)
    for path, name in keys.items():
        here = _at(mended, path[:-1])
        here[name] = here.pop(path[-1])
        for place, line in places.items():
            if place[: len(path)] == path:
                where[(*path[:-1], name, *place[len(path) :])] = line
    return mended, where


def possible_recipes(data: dict[str, object], error: ValidationError) -> list[Recipe]:
    """The recipe without its invalid values. If a value with few choices is mistyped, such as an objective, one recipe
    is returned for each likely choice: a problem of all these recipes is not caused by the mistake."""
    items = [(tuple(item["loc"]), item["type"]) for item in error.errors()]
    trimmed = copy.deepcopy(data)
    for path, _ in sorted(items, key=lambda item: len(item[0]), reverse=True):
        _remove(trimmed, path)
    for section, key, value in _PLACEHOLDERS:
        target = trimmed.get(section) if section else trimmed
        if isinstance(target, dict):
            target.setdefault(key, value)
    variants = [trimmed]
    for path in [path for path, kind in items if kind == "literal_error"]:
        above = _at(trimmed, path[:-1])
        if isinstance(above, dict):
            choices = literal_values(field_at([str(part) for part in path]).annotation)
            variants += [_with(trimmed, path, choice) for choice in choices]
    return [recipe for variant in variants if (recipe := _valid(variant)) is not None]


def _with(data: dict[str, object], path: Path, value: Any) -> dict[str, object]:
    changed = copy.deepcopy(data)
    _at(changed, path[:-1])[path[-1]] = value
    return changed


def _valid(data: dict[str, object]) -> Recipe | None:
    try:
        return Recipe.model_validate(data)
    except ValidationError:
        return None


def _at(data: Any, path: Path) -> Any:
    """The value at a path; None if there is none."""
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _remove(data: Any, path: Path) -> None:
    above = _at(data, path[:-1])
    if isinstance(above, dict):
        above.pop(path[-1], None)
