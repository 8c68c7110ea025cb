"""`extends: base.yaml`: recipes based on others, merged so that every value keeps its file and line."""

from __future__ import annotations

import os
from pathlib import Path

from shardyard.errors import Problem, RecipeError
from shardyard.recipe.catalog.shipped import is_file, shipped_file, shipped_recipes
from shardyard.recipe.fields import Path as FieldPath
from shardyard.recipe.loading.overrides import forget_below
from shardyard.recipe.loading.problems import show
from shardyard.recipe.loading.yaml_source import Document, read_document
from shardyard.suggest import nearest

KEY = "extends"
MAX_BASES = 50


def read_with_bases(path: Path, shown: str) -> tuple[Document, list[Path]]:
    """The recipe merged over everything that it extends, and the files involved (the recipe first).

    Mappings are merged key by key, anything else is replaced; later bases take precedence over earlier ones.

    Raises:
        RecipeError: a file cannot be read, is missing, or extends itself.
    """
    sources: list[Path] = []
    return _read(path, shown, chain=(), sources=sources), sources


def _read(path: Path, shown: str, chain: tuple[Path, ...], sources: list[Path]) -> Document:
    document = read_document(path, shown)
    real = path.resolve()
    if real not in sources:
        sources.append(real)
    place = document.places.get((KEY,), shown)
    names = _names(document, place, shown)
    if not names:
        return document
    merged = Document({})
    for name in names:
        base, base_shown = _find(name, path, shown, place)
        if base.resolve() in (*chain, real):
            raise _refuse(shown, place, f"{name!r} leads back to {base_shown}; a recipe cannot extend itself")
        if len(chain) >= MAX_BASES:
            raise _refuse(shown, place, f"more than {MAX_BASES} recipes extend each other; join some of them")
        _merge(merged, _read(base, base_shown, (*chain, real), sources))
    _merge(merged, document)
    merged.text = document.text
    return merged


def _refuse(shown: str, place: str, message: str) -> RecipeError:
    return RecipeError(shown, [Problem(place, KEY, message)])


def _names(document: Document, place: str, shown: str) -> list[str]:
    given = document.data.pop(KEY, None)
    forget_below(document, (KEY,))
    names = [given] if isinstance(given, str) else [] if given is None else given
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise _refuse(shown, place, f"must be a path, a shipped name or a list of these, got {show(given)}")
    return names


def _find(name: str, path: Path, shown: str, place: str) -> tuple[Path, str]:
    """The file of a base and its name in messages: relative to the recipe that names it, else a shipped recipe."""
    base = path.parent / os.path.expanduser(name)
    if is_file(base):
        return base, os.path.normpath(Path(shown).parent / os.path.expanduser(name))
    shipped = shipped_file(name)
    if shipped is not None:
        return shipped, str(shipped)
    near = nearest(name.removesuffix(".yaml"), [r.name for r in shipped_recipes()])
    beside = nearest(name, [p.name for p in path.parent.glob("*.yaml")])
    hint = f"; did you mean {beside or near!r}?" if beside or near else ""
    raise _refuse(shown, place, f"{name!r} is neither a file beside {Path(shown).name} nor a shipped recipe{hint}")


def _merge(base: Document, top: Document) -> None:
    """Merge `top` over `base`, in place."""
    _merge_mapping(base, top, base.data, top.data, ())
    base.problems += [problem for problem in top.problems if problem not in base.problems]
    base.renamed |= top.renamed


def _merge_mapping(
    base: Document, top: Document, into: dict[str, object], values: dict[str, object], path: FieldPath
) -> None:
    for key, value in values.items():
        here = (*path, key)
        old = into.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            base.places[here] = top.places[here]
            _merge_mapping(base, top, old, value, here)
            continue
        forget_below(base, here)
        into[key] = value
        base.places |= {place: line for place, line in top.places.items() if place[: len(here)] == here}
