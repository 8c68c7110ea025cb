"""The stages of training: the recipe of each, and where it begins and ends in steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.mixture.weights import weights_of
from shardyard.recipe.schema import Recipe, Stage


class StageOrderError(ValueError):
    """A stage does not begin after the one before it, or not before the end. `number`: its index in data.stages."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number = number


@dataclass(frozen=True)
class Span:
    """The steps of a stage: `steps` of them after the first `begin` of the run."""

    begin: int
    steps: int


def stage_recipes(recipe: Recipe) -> list[Recipe]:
    """The recipe of each stage, without stages; the first is that of `data` and `train`."""
    found = [_with(recipe, Stage())]
    for stage in recipe.data.stages:
        found.append(_with(found[-1], stage))
    return found


def stage_weights(recipe: Recipe) -> list[list[float]]:
    """The weights of the sources in each stage."""
    found = [weights_of(recipe.data)]
    for stage in recipe.data.stages:
        found.append(found[-1] if stage.weights is None else list(stage.weights))
    return found


def tokens_per_step(recipe: Recipe) -> list[int] | None:
    """Tokens of a step in each stage; None for an objective without text."""
    spec, rates = objective_spec(recipe.objective), []
    for one in stage_recipes(recipe):
        if not spec.text or one.data.sequence_length is None:
            return None
        rates.append(one.train.global_batch * one.data.sequence_length * spec.sequences)
    return rates


def stage_tokens(recipe: Recipe) -> list[int] | None:
    """Tokens of each stage; None without text, and where the length of training is counted or measured.

    Raises:
        StageOrderError: the stages do not follow each other within the run.
    """
    rates, train = tokens_per_step(recipe), recipe.train
    if rates is None or (train.steps is None and train.tokens is None):
        return None
    spans = spans_of(recipe.data.stages, rates, train.steps, train.tokens)
    return [span.steps * rate for span, rate in zip(spans, rates, strict=True)]


def spans_of(
    stages: Sequence[Stage], tokens_per_step: Sequence[int], steps: int | None, tokens: int | None
) -> list[Span]:
    """The steps of each stage; `tokens_per_step` is of each, with the first.

    Args:
        steps: of the whole run; else its length is `tokens`, rounded up to whole steps.

    Raises:
        StageOrderError: the stages do not follow each other within the run.
    """
    begins, seen = [0], [0]
    for number, stage in enumerate(stages):
        rate = tokens_per_step[number]
        begin = _begin(stage, begins[-1], seen[-1], rate, steps, tokens)
        if begin <= begins[-1]:
            before = "training starts" if number == 0 else f"stage {number} begins, after step {begins[-1]}"
            raise StageOrderError(
                number, f"begins after step {begin}, which is not after {before}; stages are in order"
            )
        begins.append(begin)
        seen.append(seen[-1] + (begin - begins[-2]) * rate)
    last = steps if steps is not None else _rounded_up(begins[-1], seen[-1], tokens_per_step[-1], tokens or 0)
    if stages and begins[-1] >= last:
        raise StageOrderError(len(stages) - 1, f"begins after step {begins[-1]}, and training ends after step {last}")
    return [Span(begin, end - begin) for begin, end in zip(begins, [*begins[1:], last], strict=True)]


def _begin(stage: Stage, begin: int, seen: int, rate: int, steps: int | None, tokens: int | None) -> int:
    """The number of steps before a stage, where the stage before it begins after `begin` steps and `seen` tokens."""
    if stage.at_tokens is not None:
        return _rounded_up(begin, seen, rate, stage.at_tokens)
    assert stage.at is not None, "checked with the recipe"
    if isinstance(stage.at, int):
        return stage.at
    if steps is not None:
        return max(1, round(stage.at * steps))
    return _rounded_up(begin, seen, rate, math.ceil(stage.at * (tokens or 0)))


def _rounded_up(begin: int, seen: int, rate: int, tokens: int) -> int:
    """Steps until `tokens` are reached, if `seen` have been after `begin` and each further step has `rate`."""
    return begin + math.ceil((tokens - seen) / rate)


def _with(recipe: Recipe, stage: Stage) -> Recipe:
    """The recipe with the lengths and sizes that a stage sets."""
    data: dict[str, object] = {"stages": []}
    train: dict[str, object] = {}
    if stage.sequence_length is not None:
        data["sequence_length"] = stage.sequence_length
    if stage.global_batch is not None:
        train["global_batch"] = stage.global_batch
    if stage.micro_batch is not None:
        train["micro_batch"] = stage.micro_batch
    return recipe.model_copy(
        update={"data": recipe.data.model_copy(update=data), "train": recipe.train.model_copy(update=train)}
    )
