"""From the name of an objective to what computes its loss."""

from __future__ import annotations

from typing import cast

from shardyard import plugins
from shardyard.objectives.base import Objective
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.registry import objective_spec


def make_objective(name: str, inputs: ObjectiveInputs) -> Objective:
    """The objective that a recipe names; its code alone is imported."""
    return cast(Objective, plugins.load(objective_spec(name).loss)(inputs))
