"""What the probes of a model found, as far as the plan needs it. Found by `models/probes/probe.py`."""

from __future__ import annotations

from dataclasses import dataclass

from shardyard.recipe.isolation import Isolation, is_packed, with_isolation
from shardyard.recipe.schema import Recipe


@dataclass(frozen=True)
class Findings:
    """The findings of the probes that were made; the defaults are those of a model that was not probed.

    isolation: the first way that keeps the documents of a row apart; None if none was looked for, or none does.
    isolation_why: what was tried, in words; empty if nothing was.
    decoder: whether the model is causal only with `is_decoder` in its configuration.
    refusals: fields of the recipe, each with the reason why it cannot be trained so. notices: what users should know.
    """

    isolation: Isolation | None = None
    isolation_why: str = ""
    decoder: bool = False
    refusals: tuple[tuple[str, str], ...] = ()
    notices: tuple[str, ...] = ()


def with_findings(recipe: Recipe, findings: Findings) -> Recipe:
    """The recipe with what follows from the findings: `data.isolation`, unless given, and `is_decoder`."""
    if findings.isolation is not None and recipe.data.isolation == "auto" and is_packed(recipe):
        recipe = with_isolation(recipe, findings.isolation)
    if not findings.decoder:
        return recipe
    config = {**recipe.model.config, "is_decoder": True}
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"config": config})})
