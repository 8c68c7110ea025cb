"""Objectives by the names that recipes call them. A new one is one file beside this and one line below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from shardyard.objectives.base import Objective
from shardyard.objectives.causal import CausalLM
from shardyard.recipe import schema


@dataclass(frozen=True)
class Parts:
    """What objectives are made from: their sections of the recipe, tokenizer, the model's configuration.

    `frozen` is the teacher of a distillation or the reference model of a preference, without gradients.
    """

    loss: schema.Loss = field(default_factory=schema.Loss)
    experts: schema.Experts = field(default_factory=schema.Experts)
    preference: schema.Preference = field(default_factory=schema.Preference)
    distillation: schema.Distillation = field(default_factory=schema.Distillation)
    evaluate: schema.Evaluate = field(default_factory=schema.Evaluate)
    tokenizer: Any = None
    model: Any = None
    frozen: nn.Module | None = None


_OBJECTIVES: dict[str, Callable[[Parts], Objective]] = {
    "causal_lm": lambda parts: CausalLM(parts.loss.label_smoothing),
}


def make_objective(name: str, parts: Parts) -> Objective:
    """The objective that a recipe names."""
    return _OBJECTIVES[name](parts)
