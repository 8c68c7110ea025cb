"""Renamed fields: recipes with an old name still load, with a message that states the new name."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from shardyard.errors import RenamedFieldWarning

# Old dotted path → current dotted path.
RENAMED = {
    "data.blind": "data.drop_inputs",
    "data.lanes": "data.streams",
    "model.adapter.whole": "model.adapter.modules_to_save",
    "model.experts.parallel": "parallel.expert",
}


def current_path(path: Sequence[str]) -> tuple[str, ...]:
    """The path with current field names."""
    old = old_name(path)
    if old is None:
        return tuple(path)
    return (*RENAMED[old].split("."), *path[old.count(".") + 1 :])


def old_name(path: Sequence[str]) -> str | None:
    """The old field name at the beginning of a path; None if there is none."""
    beginnings = (".".join(path[:length]) for length in range(len(path), 0, -1))
    return next((beginning for beginning in beginnings if beginning in RENAMED), None)


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
        (*above, name), (*now_above, now) = old.split("."), new.split(".")
        if above == now_above:
            recipe = _renamed(recipe, above, name, now)
        else:
            recipe = _moved(recipe, (above, name), (now_above, now))
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


def _moved(
    recipe: Mapping[str, object], old: tuple[Sequence[str], str], new: tuple[Sequence[str], str]
) -> Mapping[str, object]:
    """The recipe with a field in another section, whose name and sections above are given."""
    before, now = _section(recipe, old[0]), _section(recipe, new[0])
    if not before or old[1] not in before or now is None or new[1] in now:
        return recipe
    kept = {key: value for key, value in before.items() if key != old[1]}
    return _with_section(_with_section(recipe, old[0], kept), new[0], {**now, new[1]: before[old[1]]})


def _section(recipe: Mapping[str, object], path: Sequence[str]) -> Mapping[str, object] | None:
    """A section; empty if it is not there or null, None if something else is in its place."""
    here: object = recipe
    for name in path:
        here = here.get(name) if isinstance(here, Mapping) else here
    return {} if here is None else here if isinstance(here, Mapping) else None


def _with_section(
    recipe: Mapping[str, object], path: Sequence[str], section: Mapping[str, object]
) -> Mapping[str, object]:
    if not path:
        return section
    below = _section(recipe, path[:1]) or {}
    return {**recipe, path[0]: _with_section(below, path[1:], section)}


def message(old: str) -> str:
    """The warning about an old name."""
    return f"{old} is now called {RENAMED[old]}; the old name still works, but will be removed"


def warn(where: str, old: str) -> None:
    """Warn about an old name in a recipe or an override; `where` is its file and line, or the option."""
    warnings.warn(f"{where}: {message(old)}", RenamedFieldWarning, stacklevel=2)
