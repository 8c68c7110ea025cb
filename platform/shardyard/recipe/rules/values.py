"""Rules for the first values of local files: classes that the model does not have, and media that are not there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe, Source
from shardyard.recipe.seen_columns import Seen, look
from shardyard.recipe.seen_values import first_rows
from shardyard.recipe.sources.files import MEDIA_FOLDERS
from shardyard.recipe.sources.usual import columns_of

Finding = tuple[Path, str]
# The number of classes of a configuration of transformers that names none.
_DEFAULT_CLASSES = 2
_FEW = 3


@dataclass(frozen=True)
class _Problem:
    """What is wrong with some first values, and whether a run ends for it."""

    message: str
    ends: bool


def value_rules(recipe: Recipe) -> Iterator[Finding]:
    """Values of local files for which a run would end."""
    for path, problem in _problems(recipe):
        if problem.ends:
            yield path, problem.message


def value_notes(recipe: Recipe) -> list[str]:
    """What is told about values of local files that a run leaves out."""
    return [problem.message for _, problem in _problems(recipe) if not problem.ends]


def _problems(recipe: Recipe) -> Iterator[tuple[Path, _Problem]]:
    kinds = objective_spec(recipe.objective).columns
    if not {"label", "image", "audio"} & set(kinds.values()):
        return
    for name in ("train", "validation"):
        for index, source in enumerate(getattr(recipe.data, name)):
            split = source.split or ("train" if name == "train" or source.holdout else "validation")
            seen = look(source.path, split) if source.path is not None else Seen()
            if seen.file is None or not seen.columns:
                continue
            for problem in _of_source(recipe, source, seen):
                yield ("data", name, index), problem


def _of_source(recipe: Recipe, source: Source, seen: Seen) -> Iterator[_Problem]:
    kinds = objective_spec(recipe.objective).columns
    named = columns_of(kinds, source.columns, source.text_column, seen.columns.__contains__)
    checked = {role: named[role] for role, kind in kinds.items() if kind in ("label", "image", "audio")}
    file = str(seen.file)
    rows = first_rows(file, [column for column in checked.values() if column in seen.columns])
    for role, column in checked.items():
        values = [row[column] for row in rows if row.get(column) not in (None, "")]
        if kinds[role] != "label":
            yield from _media(file, column, values)
        elif objective_spec(recipe.objective).classes:
            yield from _labels(recipe, file, column, values)


def _media(file: str, column: str, values: Sequence[object]) -> Iterator[_Problem]:
    names = [value for value in values if isinstance(value, str)]
    url = next((name for name in names if "://" in name), None)
    if url is not None:
        yield _Problem(
            f"column {column!r} holds URLs such as {url:.80}; download the files, or store their bytes", True
        )
        return
    home = os.path.dirname(os.path.abspath(file))
    folders = ("", *MEDIA_FOLDERS)
    lost = [name for name in names if not any(os.path.exists(os.path.join(home, at, name)) for at in folders)]
    if lost:
        yield _Problem(
            f"column {column!r} of {PurePath(file).name} names files relative to its folder, and {len(lost)} of its "
            f"first {len(names)} names no file, such as {lost[0]}",
            len(lost) == len(names),
        )


def _labels(recipe: Recipe, file: str, column: str, values: Sequence[object]) -> Iterator[_Problem]:
    classes, names = _classes(recipe), _names(recipe)
    if classes is None:
        return
    wrong = [value for value in values if not _is_class(value, classes, names)]
    if not wrong:
        return
    shown = ", ".join(dict.fromkeys(str(value)[:40] for value in wrong[: 20 * _FEW]))
    more = len(wrong) == len(values)
    what = f"its classes are {', '.join(names)}" if names else f"it has {classes} classes, 0 to {classes - 1}"
    stops = recipe.data.on_error == "stop"
    told = "a run ends there" if stops else "none is left" if more else "a run leaves them out"
    yield _Problem(
        f"column {column!r} of {PurePath(file).name} has labels in {len(wrong)} of its first {len(values)} rows that "
        f"the model has no class for: {shown}; {what}, so {told}. Name all classes in model.labels, or set num_labels "
        "in model.config",
        stops or more,
    )


def _names(recipe: Recipe) -> Sequence[str]:
    given = recipe.model.config.get("id2label")
    return recipe.model.labels or (list(map(str, given.values())) if isinstance(given, dict) else [])


def _classes(recipe: Recipe) -> int | None:
    """The number of the model's classes; None if it is not known here."""
    if names := _names(recipe):
        return len(names)
    number = recipe.model.config.get("num_labels")
    if isinstance(number, int):
        return number
    return _DEFAULT_CLASSES if recipe.model.pretrained is None and recipe.model.module is None else None


def _is_class(value: object, classes: int, names: Sequence[str]) -> bool:
    """Whether the model has the class of a label; labels below 0 stand for none on purpose."""
    if isinstance(value, str) and value.strip() in names:
        return True
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return False
    return number < classes and number == int(number)
