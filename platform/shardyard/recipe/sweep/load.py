"""Loading a sweep: from a file and overrides to a checked `Sweep` with its recipe, or to all its problems at once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shardyard.errors import Problem, RecipeError
from shardyard.recipe.catalog.shipped import find_recipe, is_file
from shardyard.recipe.fields import dotted
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe, shown_path, without_resets
from shardyard.recipe.loading.overrides import forget_below
from shardyard.recipe.loading.problems import mistyped_literals, problems_of, where
from shardyard.recipe.loading.yaml_source import Document, parse_value, read_document
from shardyard.recipe.renamed import RENAMED, current_name, warn
from shardyard.recipe.sweep.rules import check
from shardyard.recipe.sweep.schema import FIXED, Sweep
from shardyard.recipe.sweep.trials import as_overrides, probes, shown

MAX_PROBES = 256
MAX_PROBLEMS = 20


@dataclass(frozen=True)
class LoadedSweep:
    """A checked sweep, the recipe of all its trials (`base`), and its file."""

    sweep: Sweep
    base: LoadedRecipe
    path: Path
    text: str
    overrides: tuple[str, ...]


def load_sweep(name_or_path: str, overrides: Sequence[str] = ()) -> LoadedSweep:
    """Read, override and check a sweep, its recipe, and the recipe of each trial that is known in advance.

    Args:
        name_or_path: a file, or the name of a shipped sweep such as `sweeps/lr-batch`.
        overrides: `key=value` for fields of the sweep, `path.to.key=value` for fields of the recipe of all trials.

    Raises:
        RecipeError: with every problem found.
    """
    path = find_recipe(name_or_path)
    source = shown_path(path)
    document = read_document(path, source)
    if "model" in document.data and not {"recipe", "parameters"} & document.data.keys():
        message = f"is a recipe, not a sweep; `shardyard launch {name_or_path}` trains it"
        raise RecipeError(source, [Problem(source, "", message)])
    _override(document, overrides)
    for old, place in document.renamed.items():
        warn(place, old)
    sweep = _checked(document, source)
    base = _without_budget(_base(sweep, path, document, source))
    problems = [
        Problem(where(at, document.places, source), dotted(at), message) for at, message in check(sweep, base.recipe)
    ]
    if not problems:
        problems = _problems_of_trials(sweep, base, document, source)
    if problems:
        raise RecipeError(source, problems)
    return LoadedSweep(sweep, base, path, document.text, tuple(overrides))


def _without_budget(base: LoadedRecipe) -> LoadedRecipe:
    """The recipe without a time budget, because trials are compared at the same steps."""
    train = base.recipe.train.model_copy(update={"minutes": None})
    return replace(base, recipe=base.recipe.model_copy(update={"train": train}))


def is_sweep(name_or_path: str) -> bool:
    """Whether a file looks like a sweep, with a recipe and parameters."""
    try:
        path = find_recipe(name_or_path)
        return {"recipe", "parameters"} <= read_document(path, str(path)).data.keys()
    except RecipeError:
        return False


def load_base(path: Path, overrides: Sequence[str]) -> LoadedRecipe:
    """The recipe of one trial, from the sweep's copy of its recipe.

    Raises:
        RecipeError: the values result in an invalid recipe.
    """
    return load_recipe(str(path), overrides)


def _override(document: Document, overrides: Sequence[str]) -> None:
    for text in overrides:
        key, equals, value_text = text.partition("=")
        names = key.strip().split(".")
        try:
            if not equals or not all(names):
                raise ValueError("is not key=value; write for example -s budget.trials=8")
            value = parse_value(value_text)
        except ValueError as error:
            document.problems.append(Problem(f"-s {text[:60]}", "", str(error)))
            continue
        # A field that both have, such as `name`, belongs to the sweep.
        path = tuple(names) if names[0] in Sweep.model_fields else ("overrides", current_name(".".join(names)))
        if ".".join(names) in RENAMED:
            document.renamed[".".join(names)] = f"-s {text[:60]}"
        _set(document, path, value, f"-s {text[:60]}")


def _set(document: Document, path: tuple[str, ...], value: Any, place: str) -> None:
    here = document.data
    for name in path[:-1]:
        below = here.get(name)
        if not isinstance(below, dict):
            below = here[name] = {}
        here = below
    here[path[-1]] = value
    forget_below(document, path)
    document.places[path] = place


def _checked(document: Document, source: str) -> Sweep:
    data = without_resets(document.data, Sweep)
    problems = [*document.problems, *mistyped_literals(data, document.places, source, Sweep)]
    try:
        sweep = Sweep.model_validate(data)
    except ValidationError as error:
        problems += problems_of(error, document.places, source, Sweep)
    if problems:
        raise RecipeError(source, problems)
    return sweep


def _base(sweep: Sweep, path: Path, document: Document, source: str) -> LoadedRecipe:
    """The recipe that the sweep names, with the sweep's overrides for all trials."""
    fixed = [field for field in sweep.overrides if field.partition(".")[0] in FIXED[:4]]
    if fixed:
        at = ("overrides", fixed[0])
        raise RecipeError(source, [Problem(where(at, document.places, source), dotted(at), "is set by the sweep")])
    beside = path.parent / os.path.expanduser(sweep.recipe)
    try:
        return load_recipe(str(beside) if is_file(beside) else sweep.recipe, as_overrides(sweep.overrides))
    except RecipeError as error:
        place = where(("recipe",), document.places, source)
        raise RecipeError(
            source, [_in_sweep(problem, place, sweep, document, source) for problem in error.problems]
        ) from error


def _in_sweep(problem: Problem, place: str, sweep: Sweep, document: Document, source: str) -> Problem:
    """A problem of the recipe, with the position in the sweep that causes it."""
    if problem.where.startswith("-s "):
        place = where(("overrides", problem.path), document.places, source)
    elif problem.where not in ("", sweep.recipe):  # an existing file
        return problem
    return Problem(place, problem.path, problem.message)


def _problems_of_trials(sweep: Sweep, base: LoadedRecipe, document: Document, source: str) -> list[Problem]:
    """The problems of the trials' recipes, each once, with the first trial that has it."""
    found: dict[tuple[str, str], Problem] = {}
    candidates = probes(sweep)[:MAX_PROBES]
    if sweep.scaling_law is not None and sweep.scaling_law.test:
        candidates.append(sweep.scaling_law.test)
    for parameters in candidates:
        try:
            load_recipe(str(base.path), [*as_overrides(sweep.overrides), *as_overrides(parameters)])
        except RecipeError as error:
            for problem in error.problems:
                place = _place(problem.path, sweep, document, source)
                message = f"{problem.message} (with {shown(parameters)})"
                found.setdefault((problem.path, problem.message), Problem(place, problem.path, message))
    return list(found.values())[:MAX_PROBLEMS]


def _place(path: str, sweep: Sweep, document: Document, source: str) -> str:
    """The position of the parameter that sets this field, else of the list of parameters."""
    for name, parameter in sweep.parameters.items():
        if path == name or any(path in setting for setting in parameter.settings or ()):
            return where(("parameters", name), document.places, source)
    return where(("parameters",), document.places, source)
