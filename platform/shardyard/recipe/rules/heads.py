"""Rules for the heads of classifiers: the names of their classes, and the number of their outputs."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.objectives.registry import objective_spec, specs
from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe

Finding = tuple[Path, str]


def head_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about `model.labels` and the number of outputs."""
    spec, model = objective_spec(recipe.objective), recipe.model
    if spec.single_output and model.module is None and model.config.get("num_labels") != 1:
        yield ("model", "config"), f"{recipe.objective} predicts one number; set num_labels: 1"
    yield from _labels(recipe)


def _labels(recipe: Recipe) -> Iterator[Finding]:
    labels, path = recipe.model.labels, ("model", "labels")
    if not labels:
        return
    if not objective_spec(recipe.objective).classes:
        owners = ", ".join(other.name for other in specs() if other.classes)
        yield path, f"does nothing for the objective {recipe.objective}, only for {owners}; remove it"
    elif recipe.model.module is not None:
        yield path, "names the classes of transformers' families, not those of model.module; take it out"
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        yield path, f"names {twice[0]!r} more than once; give every class its own name"
    number = recipe.model.config.get("num_labels")
    if number is not None and number != len(labels):
        yield path, f"has {len(labels)} names, and model.config.num_labels is {number}; remove num_labels"
    for key in ("id2label", "label2id"):
        if key in recipe.model.config:
            yield ("model", "config", key), "is made from model.labels; keep one of them"
