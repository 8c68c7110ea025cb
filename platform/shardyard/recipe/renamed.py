"""Renamed fields: recipes with an old name still load, with a message that states the new name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.errors import RenamedFieldWarning

# Old dotted path → current dotted path, both in the same section.
RENAMED = {
    "data.blind": "data.drop_inputs",
    "data.lanes": "data.streams",
    "model.adapter.whole": "model.adapter.modules_to_save",
}


def current_path(path: Sequence[str]) -> tuple[str, ...]:
    """The path with current field names."""
    for length in range(len(path), 0, -1):
        new = RENAMED.get(".".join(path[:length]))
        if new is not None:
            return (*new.split("."), *path[length:])
    return tuple(path)


def current_name(dotted: str) -> str:
    """`current_path` for a dotted path."""
    return ".".join(current_path(dotted.split(".")))


def with_current_names(recipe: Any) -> Any:
    """Plain data of a recipe with current field names; other data is returned unchanged.

    A field that is given under both names keeps both, so that the schema rejects the old one.
    """
    if not isinstance(recipe, Mapping):
        return recipe
    for old, new in RENAMED.items():
        *above, name = old.split(".")
        recipe = _renamed(recipe, above, name, new.rpartition(".")[2])
    return recipe


def _renamed(section: Mapping[str, Any], above: Sequence[str], old: str, new: str) -> Mapping[str, Any]:
    if above:
        below = section.get(above[0])
        if not isinstance(below, Mapping):
            return section
        changed = _renamed(below, above[1:], old, new)
        return section if changed is below else {**section, above[0]: changed}
    if old not in section or new in section:
        return section
    return {new if key == old else key: value for key, value in section.items()}


def message(old: str) -> str:
    """The warning about an old name."""
    return f"{old} is now called {RENAMED[old]}; the old name still works, but will be removed"


def warn(where: str, old: str) -> None:
    """Warn about an old name in a recipe or an override; `where` is its file and line, or the option."""
    warnings.warn(f"{where}: {message(old)}", RenamedFieldWarning, stacklevel=2)
