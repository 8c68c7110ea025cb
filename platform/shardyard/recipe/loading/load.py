"""Loading a recipe: from a file and overrides to a checked `Recipe`, or to all of its problems at once."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.representer import SafeRepresenter

from shardyard.errors import Problem, RecipeError
from shardyard.recipe.catalog.shipped import find_recipe
from shardyard.recipe.code import find_beside, lead_to_kept
from shardyard.recipe.earlier_defaults import keep_earlier_defaults
from shardyard.recipe.fields import Path as FieldPath
from shardyard.recipe.fields import allows_none, dotted, item_type, section_type
from shardyard.recipe.loading.extends import read_with_bases
from shardyard.recipe.loading.overrides import apply_overrides
from shardyard.recipe.loading.problems import mistyped_literals, problems_of, where
from shardyard.recipe.loading.salvage import mistyped_keys, possible_recipes, renamed
from shardyard.recipe.loading.yaml_source import Document
from shardyard.recipe.renamed import warn
from shardyard.recipe.rules import rules
from shardyard.recipe.schema import Recipe

# The recipe of a run folder, with every default and derived value.
RESOLVED = "resolved.yaml"


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe and its origin.

    text: the file as given; overrides: as on the command line; sources: the file, then the bases that it extends.
    """

    recipe: Recipe
    path: Path
    text: str
    overrides: tuple[str, ...]
    sources: tuple[Path, ...]


def load_recipe(name_or_path: str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read, merge, override and check a recipe.

    Args:
        name_or_path: a file, or the name of a shipped recipe such as `gpt/quickstart`.
        overrides: `path.to.key=value`, applied in order.

    Raises:
        RecipeError: with every problem found.
    """
    path = find_recipe(name_or_path)
    shown = shown_path(path)
    document, sources = read_with_bases(path, shown)
    if {"recipe", "parameters"} <= document.data.keys():
        message = f"is a sweep, not a recipe; `shardyard sweep {name_or_path}` runs it"
        raise RecipeError(shown, [Problem(shown, "", message)])
    apply_overrides(document, overrides)
    if path.name == RESOLVED:
        lead_to_kept(document.data, path.parent)
        keep_earlier_defaults(document.data)
    find_beside(document.data, [source.parent for source in sources])
    for old, place in document.renamed.items():
        # resolved.yaml is generated, so old names in it cause no warning.
        if not place.startswith(f"{shown}:") or path.name != RESOLVED:
            warn(place, old)
    recipe = _checked(document, shown)
    return LoadedRecipe(recipe, path, document.text, tuple(overrides), tuple(sources))


def parse_recipe(mapping: Mapping[str, Any], source: str = "recipe") -> Recipe:
    """A recipe from plain data, such as a run's resolved.yaml; only checks the schema.

    Raises:
        RecipeError: with every problem found.
    """
    try:
        return Recipe.model_validate(dict(mapping))
    except ValidationError as error:
        raise RecipeError(source, problems_of(error, {}, source)) from error


def dump_recipe(recipe: Recipe) -> str:
    """YAML text with every field, including defaults; `load_recipe` reads it back to the same recipe."""
    writer = YAML(typ="safe", pure=True)
    writer.Representer = _Representer
    writer.default_flow_style = False
    writer.width = 120
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    stream = io.StringIO()
    writer.dump(recipe.model_dump(mode="python"), stream)
    return stream.getvalue()


class _Representer(SafeRepresenter):
    """Writes text so that it is read back unchanged: line breaks that readers fold, such as U+0085, become escapes."""

    def text(self, text: str) -> Any:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_Representer.add_representer(str, _Representer.text)


def shown_path(path: Path) -> str:
    """A path for messages: relative if it is below the current folder, else unchanged."""
    text = str(path)
    try:
        relative = os.path.relpath(text)
    except ValueError:
        return text
    return relative if path.is_absolute() and not relative.startswith("..") else text


def _checked(document: Document, shown: str) -> Recipe:
    data, places = without_resets(document.data, Recipe), document.places
    problems = [*document.problems, *mistyped_literals(data, places, shown)]
    possible: list[Recipe] = []
    try:
        possible = [Recipe.model_validate(data)]
    except ValidationError as first:
        error: ValidationError | None = first
        # Problems below a mistyped section appear only after its name is corrected.
        while error is not None and (keys := mistyped_keys(data, error)):
            named = {dotted(path) for path in keys}
            problems += [problem for problem in problems_of(error, places, shown) if problem.path in named]
            data, places = renamed(data, places, keys)
            error = _error_of(data)
        problems += problems_of(error, places, shown) if error is not None else []
        possible = possible_recipes(data, error) if error is not None else [Recipe.model_validate(data)]
    broken = {problem.path.partition(".")[0] for problem in problems}
    problems += [
        Problem(where(path, places, shown), dotted(path), message)
        for path, message in _rule_violations(possible)
        # If a section has other problems, they may be the reason why it breaks a rule.
        if path[0] not in broken
    ]
    if problems:
        raise RecipeError(shown, sorted(problems, key=_order))
    return possible[0]


def _error_of(data: Any) -> ValidationError | None:
    try:
        Recipe.model_validate(data)
    except ValidationError as error:
        return error
    return None


def _order(problem: Problem) -> tuple[str, int]:
    file, _, line = problem.where.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (problem.where, 0)


def _rule_violations(possible: Sequence[Recipe]) -> list[tuple[FieldPath, str]]:
    """The rules that each of these recipes breaks."""
    found = [rules.check(recipe) for recipe in possible]
    return [finding for finding in found[0] if all(finding in others for others in found[1:])] if found else []


def without_resets(data: Any, annotation: Any) -> Any:
    """The data without null for fields that cannot be null, where it means the default; required fields are kept."""
    section, item = section_type(annotation), item_type(annotation)
    if section is not None and isinstance(data, dict):
        kept = {}
        for key, value in data.items():
            info = section.model_fields.get(key)
            if value is None and info is not None and not info.is_required() and not allows_none(info.annotation):
                continue
            kept[key] = without_resets(value, info.annotation) if info is not None else value
        return kept
    if item is not None and isinstance(data, list):
        return [without_resets(value, item) for value in data]
    return data
