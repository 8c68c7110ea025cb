"""Rules for the steps that clean documents: steps that are incomplete, contradict themselves, or need all documents."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.fields import Path
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sections.filters import EvaluationSet, Length, NearDuplicates, Step

Finding = tuple[Path, str]
# More hashes than this gain nothing and take memory.
MOST_HASHES = 4096


def filter_rules(recipe: Recipe) -> Iterator[Finding]:
    """All findings about the steps of a recipe."""
    data = recipe.data
    yield from _streamed(("data", "filters"), data.filters, recipe.objective)
    for name in ("train", "validation"):
        for index, source in enumerate(getattr(data, name)):
            # Those of data.filters are a source's own once the recipe is read.
            if source.filters and source.filters != data.filters:
                yield from _streamed(("data", name, index, "filters"), source.filters, recipe.objective)


def _streamed(path: Path, steps: Sequence[Step], objective: str) -> Iterator[Finding]:
    for below, message in step_findings(steps):
        yield (*path, *below), message
    text = "text" in objective_spec(objective).all_columns
    for index, step in enumerate(steps):
        if len(step.names) != 1:
            continue
        if step.compares:
            yield (
                (*path, index, step.name),
                (
                    "compares all documents with each other, which a stream cannot: list it under `steps` of a file "
                    "for `shardyard data build`, and give the folder that this writes as `path`"
                ),
            )
        elif step.changes_text and not text:
            yield (
                (*path, index, step.name),
                f"changes the text of documents, and the rows of {objective} are not single texts; remove it",
            )


def step_findings(steps: Sequence[Step]) -> Iterator[Finding]:
    """Findings about steps, with their paths below the list."""
    for index, step in enumerate(steps):
        names = step.names
        if len(names) != 1:
            given = f"has {' and '.join(names)}; make each an entry of its own" if names else "names no step"
            yield (index,), f"{given}; one entry is one step, such as `- gopher_quality:`"
            continue
        for below, message in _findings(step):
            yield (index, names[0], *below), message


def _findings(step: Step) -> Iterator[Finding]:
    if step.length is not None:
        yield from _length(step.length)
    if step.regex is not None:
        try:
            re.compile(step.regex.pattern)
        except re.error as error:
            yield ("pattern",), f"is no regular expression: {error}"
        if step.regex.replacement and step.regex.action != "replace":
            yield ("replacement",), f"has no effect on {step.regex.action}; set action to replace, or remove it"
    if step.near_duplicates is not None:
        yield from _near(step.near_duplicates)
    if step.decontaminate is not None:
        if step.decontaminate.min_ngram > step.decontaminate.ngram:
            yield ("min_ngram",), "is more than ngram"
        for index, one in enumerate(step.decontaminate.against):
            yield from _evaluation_set(("against", index), one)
    if step.gopher_quality is not None:
        quality = step.gopher_quality
        for least, most in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            low, high = getattr(quality, least), getattr(quality, most)
            if low is not None and high is not None and low > high:
                yield (least,), f"is {low:g}, more than {most}, {high:g}"


def _length(length: Length) -> Iterator[Finding]:
    if length.min is None and length.max is None:
        yield (), "has neither min nor max; give one"
    if length.min is not None and length.max is not None and length.min > length.max:
        yield ("min",), f"is {length.min}, more than max, {length.max}"
    if length.unit == "tokens" and length.tokenizer is None:
        yield ("tokenizer",), "is missing: tokens are those of a tokenizer"
    elif length.unit != "tokens" and length.tokenizer is not None:
        yield ("tokenizer",), f"is for unit tokens, not {length.unit}; remove it"


def _near(near: NearDuplicates) -> Iterator[Finding]:
    if near.bands * near.rows > MOST_HASHES:
        yield ("bands",), f"times rows is {near.bands * near.rows}; give at most {MOST_HASHES} hashes"


def _evaluation_set(path: Path, one: EvaluationSet) -> Iterator[Finding]:
    if (one.source is None) == (one.path is None):
        yield path, "needs either `source` (embedded or prepared) or `path` (files or a hub id)"
