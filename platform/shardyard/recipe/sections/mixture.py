"""How a mixture changes during training: the stages of a recipe."""

from __future__ import annotations

from typing import Annotated

from shardyard.recipe.lengths import StepsOrShare
from shardyard.recipe.sections.base import NAME_PATTERN, Section, described


class Stage(Section):
    """A later part of training. What it does not set stays as in the part before it; `data` and `train` describe the
    first."""

    name: str | None = described(None, "Name of the stage in the plan and in events.", pattern=NAME_PATTERN)
    at: Annotated[int | float, StepsOrShare(least=1)] | None = described(
        None,
        "Where the stage begins: after so many steps, or after a share of training below 1, which is one of "
        "train.tokens where that is given, else of the steps. Give this or `at_tokens`.",
        "steps",
    )
    at_tokens: int | None = described(
        None, "Training tokens after which the stage begins, rounded up to whole steps.", "tokens", ge=1
    )
    weights: list[float] | None = described(
        None,
        "Weights of all sources of data.train, in their order, for this stage; 0 leaves a source out. They replace "
        "`weight` and data.temperature.",
        min_length=1,
    )
    sequence_length: int | None = described(
        None,
        "Length of a row from here on. Documents continue where the stage before left them; validation keeps its rows "
        "of data.sequence_length.",
        "tokens",
        ge=2,
    )
    global_batch: int | None = described(None, "Rows per optimizer step from here on.", "sequences", ge=1)
    micro_batch: int | None = described(
        None, "Rows that one rank puts through the model at once from here on.", "sequences", ge=1
    )
