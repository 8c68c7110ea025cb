"""The meaning of a field: unit, type, allowed range and default, from the schema."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import annotated_types
from pydantic.fields import FieldInfo

from shardyard.errors import UsageError
from shardyard.recipe.fields import (
    UnknownFieldError,
    allows_none,
    field_at,
    is_free_form,
    item_type,
    literal_values,
    section_type,
    without_none,
)
from shardyard.recipe.lengths import StepsOrShare
from shardyard.recipe.renamed import current_path
from shardyard.recipe.schema import Section
from shardyard.recipe.synonyms import synonym

_NAMES = {int: "whole number", float: "number", str: "text", bool: "true or false"}


@dataclass(frozen=True)
class FieldExplanation:
    """One field, in words. `fields` lists (name, meaning) of the fields of a section; `note` names the other name by
    which the field was requested."""

    path: str
    meaning: str
    unit: str
    type: str
    range: str
    default: str
    fields: tuple[tuple[str, str], ...] = ()
    note: str = ""

    def __str__(self) -> str:
        lines = [self.note] if self.note else []
        lines += [f"{self.path}: {self.meaning}", f"  type: {self.type}"]
        lines += [f"  {name}: {value}" for name, value in self.details() if value]
        width = max((len(name) for name, _ in self.fields), default=0)
        lines += ["  fields:"] if self.fields else []
        lines += [f"    {name:{width}}  {meaning}" for name, meaning in self.fields]
        return "\n".join(lines)

    def details(self) -> tuple[tuple[str, str], ...]:
        """Further properties of a field, as (label, text)."""
        return (("unit", self.unit), ("range", self.range), ("default", self.default))


def explain_field(path: str) -> FieldExplanation:
    """Explain a field or a section by its dotted path, such as `train.global_batch` or `data.train.weight`, or by its
    name in other tools, such as `learning_rate`.

    Raises:
        UsageError: the field does not exist; the message suggests the most similar name.
    """
    names = path.strip().strip(".").split(".")
    if (new := current_path(names)) != tuple(names):
        return replace(explain_field(".".join(new)), note=f"{path} is now called {'.'.join(new)}.")
    try:
        at = field_at(names)
    except UnknownFieldError as unknown:
        found = synonym(names[-1])
        if found is not None and is_field(found.path):
            note = f"{path} is {found.path} here" + (f" ({found.difference})" if found.difference else "") + "."
            return replace(explain_field(found.path), note=note)
        end = "" if unknown.message.endswith(("?", ")")) else "."
        raise UsageError(f"{path}: {unknown.message}{end} `shardyard explain <section>` lists its fields.") from unknown
    section = section_type(item_type(at.annotation) or at.annotation)
    below = section.model_fields.items() if section is not None else ()
    return FieldExplanation(
        path=".".join(names),
        meaning=_meaning(at.info, section),
        unit=_unit(at.info),
        type=type_words(at.annotation),
        range=", ".join(_limits(at.annotation, at.info)),
        default=_default(at.info),
        fields=tuple((name, info.description or "") for name, info in below),
    )


def is_field(text: str) -> bool:
    """Whether the text names a field of the schema, rather than a recipe."""
    try:
        field_at(current_path(text.split(".")))
    except UnknownFieldError:
        return False
    return True


def type_words(annotation: Any) -> str:
    """`int | None` → `whole number or null`."""
    null = " or null" if annotation is not Any and allows_none(annotation) else ""
    bare = without_none(annotation)
    if section_type(bare) is not None:
        return f"section{null}"
    if is_free_form(bare):
        return f"section with free keys{null}"
    if _is_steps_or_share(bare):
        return f"steps or share of the run{null}"
    if _is_steps_or_share(bare, str):
        return f"steps, share of the run, or time{null}"
    item = item_type(bare)
    if item is not None:
        return f"list of {'sections' if section_type(item) else _NAMES.get(item, 'value') + 's'}{null}"
    choices = literal_values(bare)
    if choices:
        return f"one of {', '.join(map(str, choices))}{null}"
    if typing.get_origin(bare) in (typing.Union, types.UnionType):
        kinds = (type_words(one) for one in typing.get_args(bare) if one is not types.NoneType)
        return f"{', '.join(kinds)}{null}"
    return f"{_NAMES.get(bare, 'any value')}{null}"


def _is_steps_or_share(annotation: Any, *more: type) -> bool:
    bare = typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation
    return set(typing.get_args(bare)) == {int, float, *more}


def _meaning(info: FieldInfo | None, section: type[Section] | None) -> str:
    if info is not None and info.description:
        return info.description
    return (section.__doc__ if section is not None else None) or "A value that is passed on unchanged."


def _unit(info: FieldInfo | None) -> str:
    extra = info.json_schema_extra if info is not None else None
    return str(extra.get("unit", "")) if isinstance(extra, dict) else ""


def _limits(annotation: Any, info: FieldInfo | None) -> Iterator[str]:
    metadata = list(info.metadata) if info is not None else []
    bare = without_none(annotation)
    if typing.get_origin(bare) is typing.Annotated:
        metadata += [m for extra in typing.get_args(bare)[1:] for m in getattr(extra, "metadata", [extra])]
    for rule in metadata:
        if isinstance(rule, annotated_types.Ge):
            yield f"at least {rule.ge}"
        elif isinstance(rule, annotated_types.Gt):
            yield f"more than {rule.gt}"
        elif isinstance(rule, annotated_types.Le):
            yield f"at most {rule.le}"
        elif isinstance(rule, annotated_types.Lt):
            yield f"less than {rule.lt}"
        elif isinstance(rule, annotated_types.MinLen) and rule.min_length:
            yield f"at least {rule.min_length} long"
        elif isinstance(rule, annotated_types.MaxLen):
            yield f"at most {rule.max_length} long"
        elif isinstance(rule, StepsOrShare):
            more = ", or a time such as 30m" if rule.timed else ""
            yield f"whole number from {rule.least} on, or a share above 0 and below 1{more}"
        elif getattr(rule, "pattern", None):
            yield f"matches {rule.pattern}"


def _default(info: FieldInfo | None) -> str:
    if info is None:
        return ""
    if info.is_required():
        return "none, must be given"
    if isinstance(info.default, Section):
        return "that of its fields"
    if info.default is None:
        return "null"
    if isinstance(info.default, bool):
        return "true" if info.default else "false"
    return str(info.default) if info.default not in ("", [], {}) else "empty"
