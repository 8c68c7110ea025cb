"""What a run takes of each source of a mixture, in each stage and over its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shardyard.planning.stages import Segment, expected_mixture
from shardyard.recipe.mixture.weights import is_planned, short_names
from shardyard.recipe.schema import Recipe


@dataclass(frozen=True)
class SourcePlan:
    """The part of a source in a run.

    weights: in each stage. tokens: expected in each stage, without regard to `most_epochs`, because the size of a
    source is not known here. most_tokens, most_epochs: its limits, if it has any.
    """

    name: str
    weights: tuple[float, ...]
    tokens: tuple[float, ...]
    most_tokens: int | None = None
    most_epochs: int | None = None

    @property
    def total(self) -> float:
        """Tokens in the whole run."""
        return sum(self.tokens)

    @property
    def limits(self) -> str:
        """Its limits in words."""
        passes = (
            "" if self.most_epochs is None else f"at most {self.most_epochs} pass{'es'[: 2 * (self.most_epochs > 1)]}"
        )
        tokens = "" if self.most_tokens is None else f"at most {self.most_tokens} tokens"
        return ", ".join(filter(None, (passes, tokens)))


def source_plans(recipe: Recipe, tokens: Sequence[float], weights: Sequence[Sequence[float]]) -> tuple[SourcePlan, ...]:
    """The sources of a mixture; none for a recipe of one source without limits.

    Args:
        tokens: of each stage.
        weights: of the sources in each stage.
    """
    sources = recipe.data.train
    if len(sources) == 1 and not is_planned(recipe.data):
        return ()
    budgets = [source.tokens for source in sources]
    found = [[0.0] * len(tokens) for _ in sources]
    for part in expected_mixture(list(zip(tokens, weights, strict=True)), budgets):
        for index, share in enumerate(part.shares):
            found[index][part.stage] += share * (part.end - part.begin)
    names = short_names([str(source.source or source.path) for source in sources])
    return tuple(
        SourcePlan(name, tuple(given), tuple(own), source.tokens, source.epochs)
        for name, given, own, source in zip(names, zip(*weights, strict=True), found, sources, strict=True)
    )


def segments_of(sources: Sequence[SourcePlan], stage_tokens: Sequence[float]) -> list[Segment]:
    """The shares of the sources over the tokens of the run."""
    weights = list(zip(*(source.weights for source in sources), strict=True))
    budgets = [source.most_tokens for source in sources]
    return expected_mixture(list(zip(stage_tokens, weights, strict=True)), budgets)


def shares_over(segments: Sequence[Segment], source: int, columns: int, tokens: float) -> list[float]:
    """The mean share of a source in each of `columns` equal parts of the run; 0 where the sources are exhausted."""
    width = tokens / columns
    found = []
    for column in range(columns):
        first, last = column * width, (column + 1) * width
        parts = ((one.shares[source], min(last, one.end) - max(first, one.begin)) for one in segments)
        found.append(sum(share * length for share, length in parts if length > 0) / width)
    return found
