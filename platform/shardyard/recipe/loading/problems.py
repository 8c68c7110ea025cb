"""Pydantic's errors as messages for users: position, field, value, and valid values."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from shardyard.errors import Problem
from shardyard.recipe.fields import (
    Path,
    UnknownFieldError,
    dotted,
    field_at,
    is_free_form,
    item_type,
    literal_values,
    section_type,
)
from shardyard.recipe.schema import Recipe, Section
from shardyard.suggest import suggestion

Places = Mapping[Path, str]
_PATTERNS = {
    "name": "must be 1 to 80 letters, digits, '.', '_' or '-', beginning with a letter or digit",
    "memory_per_worker": "must be a size such as 80GiB or 500MB",
    "shard_size": "must be a size such as 5GB or 500MB",
}


def show(value: Any) -> str:
    """A value as shown in messages: `'many' (text)`, `true`, `a list of 2`."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"{value[:40] + '…' if len(value) > 40 else value!r} (text)"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "a section of keys"
    return str(value)[:40]


def where(path: Path, places: Places, source: str) -> str:
    """The position of the key itself, else of the nearest section above it, else the first line."""
    for length in range(len(path), 0, -1):
        place = places.get(path[:length])
        if place is not None:
            return place
    return f"{source}:1"


def problems_of(error: ValidationError, places: Places, source: str, root: type[Section] = Recipe) -> list[Problem]:
    """Every problem that pydantic found, in the order of the schema of `root`."""
    found = []
    for item in error.errors(include_url=False):
        path: Path = tuple(item["loc"])
        found.append(Problem(where(path, places, source), dotted(path), _message(path, item, root)))
    return found


def mistyped_literals(data: Any, places: Places, source: str, root: type[Section] = Recipe) -> list[Problem]:
    """Choices of a wrong type that pydantic accepts: `stage: true` equals 1 in Python, but is not in 0, 1, 2, 3."""
    found: list[Problem] = []
    _walk_literals(
        data,
        root,
        (),
        lambda path, message: found.append(Problem(where(path, places, source), dotted(path), message)),
    )
    return found


def _walk_literals(data: Any, annotation: Any, path: Path, report: Callable[[Path, str], None]) -> None:
    section, item = section_type(annotation), item_type(annotation)
    if section is not None and isinstance(data, dict):
        for key, value in data.items():
            if key in section.model_fields:
                _walk_literals(value, section.model_fields[key].annotation, (*path, key), report)
    elif item is not None and isinstance(data, list):
        for index, value in enumerate(data):
            _walk_literals(value, item, (*path, index), report)
    elif data in literal_values(annotation) and type(data) not in {type(v) for v in literal_values(annotation)}:
        report(path, f"must be one of {', '.join(map(str, literal_values(annotation)))}, got {show(data)}")


def _message(path: Path, item: ErrorDetails, root: type[Section]) -> str:
    words = _WORDS.get(item["type"])
    if words is None:
        return f"{item['msg'].lower()}, got {show(item['input'])}"
    return words(path, item["input"], {**item.get("ctx", {}), "root": root})


def _unknown_key(path: Path, value: Any, ctx: Mapping[str, Any]) -> str:
    try:
        field_at([str(part) for part in path], ctx["root"])
    except UnknownFieldError as unknown:
        return unknown.message
    return f"unknown key {path[-1]!r}"


def _missing(path: Path, value: Any, ctx: Mapping[str, Any]) -> str:
    info = field_at([str(part) for part in path], ctx["root"]).info
    return f"is missing: {info.description if info is not None else 'a value'}"


def _section(path: Path, value: Any, ctx: Mapping[str, Any]) -> str:
    annotation = field_at([str(part) for part in path], ctx["root"]).annotation
    section = section_type(annotation)
    keys = "" if is_free_form(annotation) or section is None else f" ({', '.join(list(section.model_fields)[:4])}, …)"
    return f"must be a section of keys{keys}, got {show(value)}"


def _number(path: Path, value: Any, ctx: Mapping[str, Any]) -> str:
    hint = f"; write {int(value)}" if isinstance(value, float) and value.is_integer() else ""
    return f"must be a whole number, got {show(value)}{hint}"


def _choice(path: Path, value: Any, ctx: Mapping[str, Any]) -> str:
    names = re.findall(r"'([^']*)'", ctx["expected"])
    message = f"must be one of {ctx['expected'].replace(chr(39), '')}, got {show(value)}"
    hint = suggestion(str(value), names) if names and isinstance(value, str) else ""
    return f"{message}; {hint}" if hint.startswith("did") else message


def _pattern(path: Path, value: Any, ctx: Mapping[str, Any]) -> str:
    rule = _PATTERNS.get(str(path[-1]), f"must match {ctx.get('pattern')}")
    return f"{rule}, got {show(value)}"


def _steps_or_share(path: Path, value: Any, ctx: Mapping[str, Any]) -> str:
    hint = ""
    if isinstance(value, float) and value.is_integer():
        hint = f"; write {int(value)}"
    elif isinstance(value, str) and (percent := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", value)):
        hint = f"; write {float(percent[1]) / 100:g}"
    return f"{ctx['rule']}, got {show(value)}{hint}"


def _must(rule: str) -> Callable[[Path, Any, Mapping[str, Any]], str]:
    return lambda path, value, ctx: f"must {rule.format(**ctx)}, got {show(value)}"


_WORDS: dict[str, Callable[[Path, Any, Mapping[str, Any]], str]] = {
    "extra_forbidden": _unknown_key,
    "missing": _missing,
    "model_type": _section,
    "model_attributes_type": _section,
    "dict_type": _section,
    "int_type": _number,
    "int_from_float": _number,
    "literal_error": _choice,
    "plugins": lambda path, value, ctx: str(ctx["reason"]),
    "steps_or_share": _steps_or_share,
    "string_pattern_mismatch": _pattern,
    "float_type": _must("be a number"),
    "bool_type": _must("be true or false"),
    "string_type": _must("be text (in quotes where it looks like a number)"),
    "list_type": _must("be a list"),
    "greater_than_equal": _must("be at least {ge}"),
    "greater_than": _must("be more than {gt}"),
    "less_than_equal": _must("be at most {le}"),
    "less_than": _must("be less than {lt}"),
    "too_short": _must("have at least {min_length} entries"),
    "too_long": _must("have at most {max_length} entries"),
    "string_too_short": _must("have at least {min_length} characters"),
}
