"""The scaling law of a sweep: its finished trials as points, the fit, and the test of the fit's prediction."""

from __future__ import annotations

from typing import Literal

from shardyard.errors import UsageError
from shardyard.launch.run.prepare import prepare
from shardyard.launch.sweep.folder import Prediction, SweepFolder, TrialState
from shardyard.launch.sweep.law_fits import fit_hoffmann, fit_kaplan
from shardyard.launch.sweep.run import trial_overrides
from shardyard.launch.sweep.scaling_laws import Fit, Point
from shardyard.planning.plan import World
from shardyard.recipe.sweep.load import load_base
from shardyard.tracking.run.folder import typed

Form = Literal["hoffmann", "kaplan"]


def fit_sweep(folder: SweepFolder, *, form: Form = "hoffmann") -> Fit:
    """Fit a law to the finished trials, except the test trial.

    Raises:
        UsageError: too few trials, or too few model sizes.
    """
    prediction = folder.info().get("prediction")
    tested = prediction["trial"] if prediction is not None else None
    points = [point for trial in folder.trials() if trial.number != tested and (point := as_point(trial)) is not None]
    if not points:
        raise UsageError(
            f"no trial of {folder.id} has finished; `shardyard sweep show {typed(folder.path)}` tells how it goes."
        )
    return fit_hoffmann(points) if form == "hoffmann" else fit_kaplan(points)


def as_point(trial: TrialState) -> Point | None:
    """A finished trial as a point of a scaling law."""
    if trial.state != "finished" or trial.value is None or not trial.matmul_parameters:
        return None
    return Point(float(trial.matmul_parameters), float(trial.tokens), trial.value)


def predict(folder: SweepFolder, fit: Fit, number: int) -> Prediction:
    """The fit's prediction for the test trial, before it is trained."""
    sweep = folder.sweep()
    assert sweep.scaling_law is not None
    loaded = load_base(folder.base, trial_overrides(sweep, folder.id, number, sweep.scaling_law.test))
    plan = prepare(loaded.recipe, World(size=loaded.recipe.cluster.workers, gpu=False))
    n, d = plan.architecture.matmul_parameters, plan.tokens
    return {"trial": number, "parameters": n, "tokens": d, "loss": fit.law.loss(n, d), "measured": None, "error": None}


def judge(folder: SweepFolder, number: int) -> Prediction | None:
    """The prediction, the measured loss and the relative error; None if the test trial did not finish."""
    trial = next((trial for trial in folder.trials() if trial.number == number), None)
    prediction = folder.info().get("prediction")
    if trial is None or trial.state != "finished" or trial.value is None or prediction is None:
        return None
    return {**prediction, "measured": trial.value, "error": prediction["loss"] / trial.value - 1}
