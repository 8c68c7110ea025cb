"""Creating an objective from its name."""

from __future__ import annotations

from typing import cast

from shardyard import plugins
from shardyard.errors import ModelError
from shardyard.objectives.base import Z_LOSS, Objective
from shardyard.objectives.inputs import ObjectiveInputs
from shardyard.objectives.registry import objective_spec


def make_objective(name: str, inputs: ObjectiveInputs) -> Objective:
    """The objective that a recipe names; imports no other objective's code.

    Raises:
        ModelError: an objective from outside does not compute the z-loss that the recipe wants.
    """
    objective = cast(Objective, plugins.load(objective_spec(name).loss)(inputs))
    if inputs.loss.z_loss and Z_LOSS not in objective.weights:
        raise ModelError(
            f"loss.z_loss is {inputs.loss.z_loss:g}, but the objective {name} has no loss term {Z_LOSS!r}: set "
            "loss.z_loss to 0, or compute it by shardyard.objectives.z_loss.token_losses (docs/objectives.md)."
        )
    return objective
