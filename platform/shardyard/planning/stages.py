"""The plan of a stage of training, and of what each source contributes to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import TypeAdapter, ValidationError


@dataclass(frozen=True)
class StagePlan:
    """Derived values of one stage, which takes `steps` steps after the first `begin` of the run.

    first_row: rows of the run before it. tokens_per_step: positions of a step. weights: of the sources of data.train.
    """

    name: str
    begin: int
    steps: int
    first_row: int
    global_batch: int
    micro_batch: int
    accumulation: int
    sequence_length: int | None
    tokens_per_row: int
    tokens_per_step: int
    flops_per_token: float
    weights: tuple[float, ...]

    @property
    def end(self) -> int:
        """The last step of the stage."""
        return self.begin + self.steps

    @property
    def tokens(self) -> int:
        """Tokens of the stage."""
        return self.steps * self.tokens_per_step


def placed(stages: Sequence[StagePlan]) -> tuple[StagePlan, ...]:
    """The stages with the rows of the run before each."""
    found, rows = list[StagePlan](), 0
    for stage in stages:
        found.append(replace(stage, first_row=rows))
        rows += stage.steps * stage.global_batch
    return tuple(found)


def rows_planned(steps: int, global_batch: int, stages: Sequence[StagePlan]) -> int:
    """Rows of the first `steps` steps, which have `global_batch` each where there are no stages."""
    if not stages:
        return steps * global_batch
    return sum(min(max(0, steps - one.begin), one.steps) * one.global_batch for one in stages)


_STAGE = TypeAdapter(StagePlan)


def stage_of_record(found: object) -> StagePlan | None:
    """The stage in the plan of run.json; None if it is damaged, or of a version with other fields."""
    try:
        return _STAGE.validate_python(found)
    except ValidationError:
        return None


@dataclass(frozen=True)
class Milestones:
    """The ends of the stages of a run: its steps, tokens and FLOPs until there. The first are those of its start."""

    steps: tuple[float, ...]
    tokens: tuple[float, ...]
    flops: tuple[float, ...]

    def tokens_at(self, step: float) -> float:
        """Tokens of the first `step` steps."""
        for first, last, before, after in zip(self.steps, self.steps[1:], self.tokens, self.tokens[1:], strict=False):
            if step <= last:
                return before + (step - first) * (after - before) / (last - first)
        return self.tokens[-1]


def milestones(plan: Mapping[str, object]) -> Milestones | None:
    """The ends of the stages of a plan in run.json; None if it has none."""
    listed = plan.get("stages")
    read = [stage_of_record(one) for one in listed] if isinstance(listed, list | tuple) else []
    stages = [one for one in read if one is not None]
    if not stages or len(stages) < len(read):
        return None
    tokens, flops = [0.0], [0.0]
    for one in stages:
        tokens.append(tokens[-1] + one.tokens)
        flops.append(flops[-1] + one.tokens * one.flops_per_token)
    return Milestones((0.0, *(float(one.end) for one in stages)), tuple(tokens), tuple(flops))


@dataclass(frozen=True)
class Segment:
    """A part of training with constant shares: from `begin` to `end` in tokens, in stage number `stage`."""

    stage: int
    begin: float
    end: float
    shares: tuple[float, ...]


def expected_tokens(
    stage_tokens: Sequence[float], weights: Sequence[Sequence[float]], budgets: Sequence[float | None]
) -> list[float]:
    """Tokens of each source in the whole run, as far as the sources last."""
    parts = expected_mixture(list(zip(stage_tokens, weights, strict=True)), budgets)
    return [sum(one.shares[index] * (one.end - one.begin) for one in parts) for index in range(len(budgets))]


def expected_mixture(stages: Sequence[tuple[float, Sequence[float]]], budgets: Sequence[float | None]) -> list[Segment]:
    """The shares of the sources over the tokens of training, as far as the sources last.

    Args:
        stages: the tokens of each, and the weights of the sources in it.
        budgets: tokens of each source; None without a limit.
    """
    left = [float("inf") if budget is None else float(budget) for budget in budgets]
    segments: list[Segment] = []
    at = 0.0
    for number, (tokens, given) in enumerate(stages):
        remaining = float(tokens)
        while remaining > 0:
            weights = [weight if rest > 0 else 0.0 for weight, rest in zip(given, left, strict=True)]
            total = sum(weights)
            if not total:
                return segments
            shares = tuple(weight / total for weight in weights)
            lasts = [rest / share for rest, share in zip(left, shares, strict=True) if share]
            length = min(remaining, *lasts)
            segments.append(Segment(number, at, at + length, shares))
            # What is used up exactly has nothing left, whatever the rounding.
            left = [
                0.0 if share and rest / share <= length else rest - share * length
                for rest, share in zip(left, shares, strict=True)
            ]
            at, remaining = at + length, remaining - length
    return segments
