"""Rules for mixtures: weights, budgets, temperature and stages."""

from __future__ import annotations

import math
from collections.abc import Iterator

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.fields import Path
from shardyard.recipe.isolation import packs_best_fit
from shardyard.recipe.mixture.stages import StageOrderError, spans_of, tokens_per_step
from shardyard.recipe.schema import Data, Recipe, Stage
from shardyard.recipe.sources.files import matching

Finding = tuple[Path, str]

# Formats of rows whose position in the data does not depend on the length of a row.
_ANY_LENGTH = ("packed", "conversations")


def mixture_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about how sources are mixed, except those about the recipes of stages."""
    yield from _validation(recipe.data)
    yield from _weights(recipe)
    yield from _temperature(recipe.data)
    yield from _budgets(recipe)
    for number, stage in enumerate(recipe.data.stages):
        for key, message in _stage(recipe, stage):
            yield ("data", "stages", number, *((key,) if key else ())), message
    yield from _lengths(recipe)


def _validation(data: Data) -> Iterator[Finding]:
    for index, source in enumerate(data.validation):
        for name in ("size", "epochs", "tokens"):
            if getattr(source, name) is not None:
                yield ("data", "validation", index, name), "is for sources of data.train; remove it"
        if not source.weight:
            yield ("data", "validation", index, "weight"), "is 0, which would leave the source out; remove the source"


def _weights(recipe: Recipe) -> Iterator[Finding]:
    sources, stages = recipe.data.train, recipe.data.stages
    if not any(source.weight for source in sources):
        yield ("data", "train"), "has weights of 0 alone, so nothing is trained on; give one source a weight"
        return
    later = [stage.weights for stage in stages if stage.weights is not None and len(stage.weights) == len(sources)]
    for index, source in enumerate(sources):
        if not source.weight and not any(weights[index] for weights in later):
            yield (
                ("data", "train", index, "weight"),
                "is 0 and no stage gives the source a weight, so it is never read; remove the source",
            )


def _temperature(data: Data) -> Iterator[Finding]:
    if data.temperature is None:
        for index, source in enumerate(data.train):
            if source.size is not None:
                yield ("data", "train", index, "size"), "does nothing without data.temperature; remove it, or set that"
        return
    if len(data.train) == 1:
        yield ("data", "temperature"), "mixes several sources, and there is one; remove it"
        return
    given = [source.size is not None for source in data.train if source.weight]
    for index, source in enumerate(data.train):
        if source.size is None and source.weight and source.path is not None and not _is_here(source.path):
            yield (
                ("data", "train", index, "size"),
                (
                    f"is needed by data.temperature: {source.path} is not on this machine, so its documents cannot be "
                    "counted; give the sizes of all sources in one unit"
                ),
            )
        elif source.size is None and source.weight and any(given):
            yield (
                ("data", "train", index, "size"),
                "is missing, and other sources have one; give all sizes in one unit, or none, to count documents",
            )


def _is_here(path: str) -> bool:
    try:
        return bool(matching(path))
    except (OSError, ValueError):
        return False


def _budgets(recipe: Recipe) -> Iterator[Finding]:
    spec, length = objective_spec(recipe.objective), recipe.data.sequence_length
    for index, source in enumerate(recipe.data.train):
        if source.tokens is None:
            continue
        if not spec.text:
            yield ("data", "train", index, "tokens"), f"{recipe.objective} has no tokens to count; give `epochs`"
        elif length is not None and source.tokens < length * spec.sequences:
            yield (
                ("data", "train", index, "tokens"),
                f"is {source.tokens}, less than a row of {length * spec.sequences} tokens; raise it, or leave it out",
            )
    wanted = recipe.train.tokens
    if wanted is None and recipe.train.steps is not None and length is not None and not recipe.data.stages:
        wanted = recipe.train.steps * recipe.train.global_batch * length * spec.sequences
    budgets = [source.tokens for source in recipe.data.train]
    total = sum(budget or 0 for budget in budgets)
    if wanted is not None and spec.text and None not in budgets and total < wanted:
        yield (
            ("data", "train"),
            (
                f"allows {total} tokens in all (`tokens` of its sources), and training takes {wanted}; lower "
                "train.tokens or train.steps, or raise the budgets"
            ),
        )


def _stage(recipe: Recipe, stage: Stage) -> Iterator[tuple[str, str]]:
    """Findings about one stage as (key, message)."""
    spec, sources = objective_spec(recipe.objective), recipe.data.train
    if (stage.at is None) == (stage.at_tokens is None):
        given = "lacks its begin; give" if stage.at is None else "has two begins; keep one of"
        yield "", f"{given} `at` (steps, or a share of training) or `at_tokens`"
    if stage.at_tokens is not None and not spec.text:
        yield "at_tokens", f"{recipe.objective} has no tokens to count; give `at`"
    changes = (stage.weights, stage.sequence_length, stage.global_batch, stage.micro_batch)
    if all(value is None for value in changes):
        yield "", "changes nothing; give weights, sequence_length or global_batch, or remove it"
    if stage.weights is not None:
        if len(stage.weights) != len(sources):
            yield (
                "weights",
                f"has {len(stage.weights)} weights, and data.train has {len(sources)} sources; give as many",
            )
        elif any(weight < 0 or not math.isfinite(weight) for weight in stage.weights):
            yield "weights", "has a weight that is negative or not finite; 0 leaves a source out"
        elif not any(stage.weights):
            yield "weights", "are 0 alone, so nothing is trained on; give one source a weight"
    fitted = packs_best_fit(recipe.data)
    if stage.sequence_length is not None and (spec.rows not in _ANY_LENGTH or fitted):
        why = "rows that are packed best-fit" if fitted else recipe.objective
        yield (
            "sequence_length",
            f"stays the same in a run of {why}, whose rows are cut by it when they are made; set data.sequence_length",
        )
    if recipe.data.group_by_length and (stage.sequence_length, stage.global_batch) != (None, None):
        yield "", "changes what a step trains on, and data.group_by_length needs the same batches; remove one of them"
    if recipe.train.epochs is not None and (stage.sequence_length, stage.global_batch) != (None, None):
        yield "", "changes what a step trains on, and train.epochs counts rows; give train.tokens or train.steps"
    if recipe.train.minutes is not None:
        yield "", "needs a length that is known before, and train.minutes is measured; give train.steps or train.tokens"


def _lengths(recipe: Recipe) -> Iterator[Finding]:
    """Check that stages follow each other within the run."""
    stages, train = recipe.data.stages, recipe.train
    placed = all((stage.at is None) != (stage.at_tokens is None) for stage in stages)
    if not stages or not placed or (train.steps is None) == (train.tokens is None):
        return
    rates = tokens_per_step(recipe)
    if rates is None and (train.steps is None or any(stage.at_tokens is not None for stage in stages)):
        return
    try:
        spans_of(stages, rates or [1] * (len(stages) + 1), train.steps, train.tokens)
    except StageOrderError as error:
        yield ("data", "stages", error.number), str(error)
