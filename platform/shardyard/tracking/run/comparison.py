"""Comparing runs: the fields of their recipes that differ, and their metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shardyard.errors import RecipeError, RunFolderError
from shardyard.recipe.loading.yaml_source import read_document
from shardyard.tracking.metrics import record
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.summary import newest_metrics, summarize

# Descriptive fields do not affect a run.
_PROSE = frozenset({"name", "description", "paper", "expected"})
# In addition to the loss and evaluation metrics; seconds and bytes of single steps mean little at the end of a run.
_SHOWN = (record.TRAIN_LOSS, record.TRAIN_TOKENS, record.TOKENS_PER_SECOND, record.MFU)


@dataclass(frozen=True)
class Comparison:
    """Runs side by side, in the order given.

    recipe: dotted field → value in each run, for fields that differ; None if it is not set.
    metrics: name → newest value in each run; None if a run has none.
    """

    runs: tuple[str, ...]
    states: tuple[str, ...]
    steps: tuple[int, ...]
    recipe: dict[str, tuple[object, ...]]
    metrics: dict[str, tuple[float | None, ...]]


def compare(runs: Sequence[RunFolder]) -> Comparison:
    """Compare runs.

    Raises:
        RunFolderError: a run lacks its resolved recipe, or its run.json cannot be read.
    """
    summaries = [summarize(run) for run in runs]
    newest = [newest_metrics(run) for run in runs]
    return Comparison(
        runs=tuple(summary.id for summary in summaries),
        states=tuple(summary.state for summary in summaries),
        steps=tuple(summary.step for summary in summaries),
        recipe=differences([_fields(run) for run in runs]),
        metrics={name: tuple(_number(values.get(name)) for values in newest) for name in _metric_names(newest)},
    )


def differences(recipes: Sequence[Mapping[str, object]]) -> dict[str, tuple[object, ...]]:
    """The dotted fields whose values differ, in the order of the first recipe that has them."""
    fields = dict.fromkeys(field for recipe in recipes for field in recipe)
    found = {field: tuple(recipe.get(field) for recipe in recipes) for field in fields}
    return {field: values for field, values in found.items() if any(value != values[0] for value in values)}


def flatten(value: object, path: str = "") -> dict[str, object]:
    """Nested sections by dotted field; lists of plain values are kept."""
    if isinstance(value, dict) and value:
        children: list[tuple[object, object]] = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        children = list(enumerate(value))
    else:
        return {path: value}
    found: dict[str, object] = {}
    for key, child in children:
        found |= flatten(child, f"{path}.{key}" if path else str(key))
    return found


def _fields(run: RunFolder) -> dict[str, object]:
    try:
        recipe = read_document(run.resolved, str(run.resolved)).data
    except RecipeError as error:
        raise RunFolderError(f"{run.id} cannot be compared, because its recipe cannot be read: {error}") from error
    return flatten({section: value for section, value in recipe.items() if section not in _PROSE})


def _metric_names(newest: Sequence[Mapping[str, float]]) -> list[str]:
    names = dict.fromkeys(name for values in newest for name in values)
    return [name for name in names if name in _SHOWN or (name.startswith("eval/") and name.count("/") == 2)]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
