"""Sweeps: a recipe, the fields that vary, and the search. The schema of recipes/sweeps/."""

from __future__ import annotations

from typing import Any, Literal

from shardyard.recipe.sections.base import NAME_PATTERN, REQUIRED, Section, described

SearchName = Literal["grid", "random", "bayesian", "population"]

# Fields that a population can change: a member continues from another member's checkpoint with other values. DeepSpeed
# restores the other optimizer settings (weight decay, clipping, momenta) with the checkpoint, so changing them would
# have no effect.
CHANGEABLE = (
    "optimizer.lr",
    "optimizer.aux_lr",
    "schedule.min_ratio",
    "loss.label_smoothing",
    "loss.focal_gamma",
    "loss.z_loss",
    "model.dropout",
    "distillation.temperature",
    "distillation.weight",
    "preference.beta",
)
# Fields that the sweep itself sets, or that must be the same for all trials.
FIXED = ("name", "description", "paper", "expected", "cluster", "job", "tracking")


class Parameter(Section):
    """What one field may be: `values`, or a range from `min` to `max`; or `settings` of several fields together."""

    values: list[Any] | None = described(None, "Values of the field to choose from.", min_length=1)
    settings: list[dict[str, object]] | None = described(
        None, "Values of several fields that change together: mappings of dotted paths.", min_length=1
    )
    min: float | None = described(None, "Least value of a range.")
    max: float | None = described(None, "Largest value of a range.")
    scale: Literal["linear", "log"] = described("linear", "Whether a range is even in the value or in its logarithm.")
    integer: bool = described(False, "Whether a range holds whole numbers only.")


class Search(Section):
    """How values are chosen."""

    name: SearchName = described(
        "grid",
        "grid: every combination; random: independent draws; bayesian: Optuna's tree-structured Parzen estimator; "
        "population: population-based training (Jaderberg et al. 2017).",
    )
    seed: int = described(0, "Seed of the draws.", ge=0, lt=2**32)


class Target(Section):
    """The value to minimise or maximise."""

    metric: str = described("eval/validation/loss", "Metric of the evaluations, as runs record it.")
    mode: Literal["min", "max"] = described("min", "Whether smaller or larger values are better.")


class Budget(Section):
    """The limits of a sweep, whichever is reached first; running trials then stop with a checkpoint."""

    trials: int | None = described(None, "Trials in all. A grid has as many as it has combinations.", "trials", ge=1)
    tokens: int | None = described(None, "Training tokens of all trials together.", "tokens", ge=1)
    seconds: float | None = described(None, "Wall time, over all resumes.", "seconds", gt=0.0)


class Stopping(Section):
    """Early stopping of trials that fall behind (asynchronous successive halving, Li et al. 2020)."""

    name: Literal["asha"] = described("asha", "Asynchronous successive halving.")
    grace_steps: int = described(REQUIRED, "Steps that every trial may train.", "steps", ge=1)
    reduction_factor: float = described(
        3.0, "At grace_steps, and at each multiple by this factor, one in so many trials goes on.", gt=1.0
    )


class Population(Section):
    """Settings of the search `population`."""

    every: int = described(REQUIRED, "Steps between two comparisons of all members.", "steps", ge=1)
    quantile: float = described(
        0.25, "Share of the members that is replaced by as many of the best, with changed values.", gt=0.0, le=0.5
    )
    resample: float = described(
        0.25, "Probability that a value is drawn anew instead of being multiplied by 0.8 or 1.2.", ge=0.0, le=1.0
    )


class ScalingLaw(Section):
    """The fit of loss over model size and tokens that follows the trials."""

    form: Literal["hoffmann", "kaplan"] = described(
        "hoffmann", "hoffmann: E + A/N^alpha + B/D^beta (2022); kaplan: equation 1.5 of Kaplan et al. 2020."
    )
    test: dict[str, object] = described(
        {}, "Fields of a larger trial, by dotted path: its loss is predicted from the others, then measured."
    )


class Sweep(Section):
    """Many runs of one recipe, with other values of some of its fields."""

    name: str = described(REQUIRED, "Name of the sweep, of its folder and of its runs.", pattern=NAME_PATTERN)
    description: str = described("", "What this sweep is for, in a sentence or two.")
    paper: str | None = described(None, "Where the method comes from.")
    expected: str | None = described(None, "The result of the sweep, and the hardware it was measured on.")
    recipe: str = described(REQUIRED, "The recipe: a path relative to this file, or a shipped name.", min_length=1)
    overrides: dict[str, object] = described({}, "Fields of the recipe, by dotted path, for all trials.")
    parameters: dict[str, Parameter] = described(
        REQUIRED, "The values that vary: fields by dotted path, or any names for `settings`.", min_length=1
    )
    search: Search = described(Search(), "How values are chosen.")
    objective: Target = described(Target(), "The value to minimise or maximise.")
    budget: Budget = described(Budget(), "Where the sweep ends.")
    parallel: int | None = described(
        None, "Trials at a time. Default: as many as the cluster has room for.", "trials", ge=1
    )
    stopping: Stopping | None = described(None, "Early stopping of trials that fall behind.")
    population: Population | None = described(None, "Settings of the search `population`.")
    scaling_law: ScalingLaw | None = described(None, "Fit a scaling law to the trials.")
