"""Walking the schema by dotted path: fields, whether they may be null, and the fields below them."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic.fields import FieldInfo

from shardyard.recipe.renamed import RENAMED
from shardyard.recipe.schema import Recipe, Section
from shardyard.recipe.synonyms import SYNONYMS, synonym
from shardyard.suggest import nearest

Path = tuple[str | int, ...]
# Sections that have the fields of another, `data.filters`, which are listed there alone.
_AS_ELSEWHERE = ("data.train.filters", "data.validation.filters")
# The similarity required of a name in another section: a less similar one would be misleading.
FAR = 0.8


def dotted(path: Sequence[str | int]) -> str:
    """("data", "train", 0) → `data.train.0`."""
    return ".".join(str(part) for part in path)


def without_none(annotation: Any) -> Any:
    """`X | None` → `X`; anything else is returned unchanged."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        members = [a for a in typing.get_args(annotation) if a is not type(None)]
        if len(members) == 1:
            return members[0]
    return annotation


def allows_none(annotation: Any) -> bool:
    """Whether the field accepts null."""
    return annotation is Any or type(None) in typing.get_args(annotation)


def section_type(annotation: Any) -> type[Section] | None:
    """The section class of the annotation; None for plain values."""
    bare = without_none(annotation)
    return bare if isinstance(bare, type) and issubclass(bare, Section) else None


def item_type(annotation: Any) -> Any:
    """The type of a list's items; None if it is not a list."""
    bare = without_none(annotation)
    if typing.get_origin(bare) is typing.Annotated:
        bare = typing.get_args(bare)[0]
    return typing.get_args(bare)[0] if typing.get_origin(bare) is list else None


def is_free_form(annotation: Any) -> bool:
    """Whether any keys are allowed below the field, as in model.config."""
    return typing.get_origin(without_none(annotation)) is dict


def section_of_names(annotation: Any) -> type[Section] | None:
    """The section class of the values of a mapping by name, such as a sweep's `parameters`; None for other values."""
    bare = without_none(annotation)
    return section_type(typing.get_args(bare)[1]) if is_free_form(bare) and typing.get_args(bare) else None


def literal_values(annotation: Any) -> tuple[Any, ...]:
    """The values of a `Literal`, or ()."""
    bare = without_none(annotation)
    return typing.get_args(bare) if typing.get_origin(bare) is Literal else ()


class UnknownFieldError(LookupError):
    """A path below `root` is not a field: `parent` exists, `name` does not; `candidates` are valid names there."""

    def __init__(self, parent: Path, name: str, candidates: Sequence[str], root: type[Section] | None = None) -> None:
        super().__init__(dotted((*parent, name)))
        self.parent, self.name, self.candidates = parent, name, tuple(candidates)
        self.root = Recipe if root is None else root

    @property
    def message(self) -> str:
        """The error message, with the most likely intended field: of this section, else of the whole recipe."""
        return f"unknown key {self.name!r}; {self._hint()}"

    @property
    def meant(self) -> str | None:
        """The most likely intended name in the same section."""
        return nearest(self.name, self.candidates)

    def _hint(self) -> str:
        if self.root is Recipe and (renamed := RENAMED.get(dotted((*self.parent, self.name)))) is not None:
            return f"it is now called {renamed}"
        valid = ", ".join(self.candidates) or "this field holds a value and has no keys"
        if self.root is Recipe and (elsewhere := self._exactly_elsewhere()) is not None:
            return elsewhere
        if self.meant is not None:
            return f"did you mean {self.meant!r}?"
        if self.root is not Recipe:
            of_recipe = self.name.partition(".")[0] in Recipe.model_fields
            where = "it is a key of recipes: set it in the recipe, or under overrides; " if of_recipe else ""
            return f"{where}valid: {valid}"
        leaves = {path.rpartition(".")[2]: path for path in all_paths()}
        leaf = nearest(self.name, leaves, cutoff=FAR)
        if leaf is not None:
            return f"did you mean {leaves[leaf]!r}?"
        word = nearest(self.name, [name for name, found in SYNONYMS.items() if _is_path(found.path)], cutoff=FAR)
        return f"did you mean {SYNONYMS[word].path!r}?" if word is not None else f"valid: {valid}"

    def _exactly_elsewhere(self) -> str | None:
        """The right field for a name that is valid elsewhere, or that other tools use for a field."""
        if self.parent and self.name in Recipe.model_fields:
            place = dotted(self.parent)
            return f"it belongs at the top of the recipe, not below {place}; in a file, check its indentation"
        same = [path for path in all_paths() if path.rpartition(".")[2] == self.name]
        if same:
            return f"did you mean {' or '.join(map(repr, same[:3]))}?"
        found = synonym(self.name)
        if found is None or not _is_path(found.path):
            return None
        above, _, leaf = found.path.rpartition(".")
        path = leaf if above == dotted(self.parent) else found.path
        return f"did you mean {path!r}?" + (f" ({found.difference})" if found.difference else "")


def _is_path(path: str) -> bool:
    try:
        field_at(path.split("."))
    except UnknownFieldError:
        return False
    return True


@dataclass(frozen=True)
class FieldAt:
    """The annotation at a path, and the field, unless the path is a list item."""

    annotation: Any
    info: FieldInfo | None


def field_at(path: Sequence[str], root: type[Section] = Recipe) -> FieldAt:
    """Walk down from the recipe (or another `root`); list indices may be given or omitted (`data.train.weight`).

    Raises:
        UnknownFieldError: a part of the path is not a field.
    """
    annotation: Any = root
    info: FieldInfo | None = None
    for depth, name in enumerate(path):
        named = section_of_names(annotation)
        if named is not None:
            annotation, info = named, None
            continue
        if is_free_form(annotation):
            return FieldAt(Any, None)
        item = item_type(annotation)
        if item is not None:
            annotation, info = item, None
            if name.isdecimal():
                continue
        section = section_type(annotation)
        if section is None or name not in section.model_fields:
            raise UnknownFieldError(tuple(path[:depth]), name, list(section.model_fields) if section else [], root)
        info = section.model_fields[name]
        annotation = info.annotation
    return FieldAt(annotation, info)


def all_paths(section: type[Section] = Recipe, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields, in schema order; list indices are omitted."""
    for name, info in section.model_fields.items():
        yield prefix + name
        below = section_type(item_type(info.annotation) or info.annotation)
        if below is not None and prefix + name not in _AS_ELSEWHERE:
            yield from all_paths(below, f"{prefix}{name}.")
