"""Creating an objective from its name."""

from __future__ import annotations

from typing import cast

from shardyard import plugins
from shardyard.objectives.base import Objective
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.registry import objective_spec


def make_objective(name: str, inputs: ObjectiveInputs) -> Objective:
    """The objective that a recipe names; imports no other objective's code."""
    return cast(Objective, plugins.load(objective_spec(name).loss)(inputs))
