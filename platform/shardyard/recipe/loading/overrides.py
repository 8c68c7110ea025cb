"""`-s path.to.key=value`: one field of a recipe, changed from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shardyard.errors import Problem
from shardyard.recipe.fields import Path as FieldPath
from shardyard.recipe.fields import UnknownFieldError, dotted, field_at, is_free_form
from shardyard.recipe.loading.yaml_source import Document, parse_value
from shardyard.recipe.renamed import current_path, old_name


def apply_overrides(document: Document, overrides: Sequence[str]) -> None:
    """Set each field in the document's data, in the given order; values that cannot be set are added to its
    problems."""
    for text in overrides:
        problem = _apply(document, text)
        if problem is not None:
            document.problems.append(problem)


def _apply(document: Document, text: str) -> Problem | None:
    shown = f"-s {text if len(text) <= 60 else text[:60] + '…'}"
    key, equals, value_text = text.partition("=")
    given = key.strip().split(".")
    names = current_path(given)
    if not equals or not all(names):
        return Problem(shown, "", "is not path.to.key=value; write for example -s train.steps=100")
    try:
        field_at(names)
        value = parse_value(value_text)
        path = _set(document.data, names, value)
    except UnknownFieldError as unknown:
        return Problem(shown, dotted(names), unknown.message)
    except ValueError as error:
        return Problem(shown, dotted(names), str(error))
    if (old := old_name(given)) is not None:
        document.renamed[old] = shown
    forget_below(document, path)
    document.places[path] = shown
    return None


def forget_below(document: Document, path: FieldPath) -> None:
    """Drop the positions of a value that will be replaced, and of everything in it."""
    for place in [place for place in document.places if place[: len(path)] == path]:
        del document.places[place]


def _set(data: dict[str, object], names: Sequence[str], value: Any) -> FieldPath:
    """Set the value, creating missing sections; returns the path with list indices as numbers."""
    here: Any = data
    path: FieldPath = ()
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        step: str | int = name
        if isinstance(here, list):
            step = _index(here, name, path)
        elif not isinstance(here, dict):
            raise ValueError(f"{dotted(path)} is not a section in this recipe; set it as a whole")
        path = (*path, step)
        if last:
            here[step] = value
        elif isinstance(here, list):
            here = here[int(step)]
        else:
            if here.get(name) is None:
                _refuse_index(names[depth + 1], path)
                here[name] = {}
            here = here[name]
    return path


def _refuse_index(name: str, path: FieldPath) -> None:
    if name.isdecimal() and not is_free_form(field_at([str(part) for part in path]).annotation):
        raise ValueError(f"{dotted(path)} is not set in this recipe, so it has no entry {name}; set the whole list")


def _index(values: list[Any], name: str, path: FieldPath) -> int:
    if name.isdecimal() and len(name) < 9 and int(name) < len(values):
        return int(name)
    end = f"0 to {len(values) - 1}" if values else "none"
    raise ValueError(f"{dotted(path)} has {len(values)} entries, so its indices are {end}; got {name!r}")
