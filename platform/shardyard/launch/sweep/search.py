"""The settings of a sweep for Ray Tune: the source of parameters, and the scheduler of running trials."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from shardyard.errors import ShardyardError
from shardyard.launch.sweep.folder import TrialState
from shardyard.recipe.sweep.schema import Parameter, Sweep
from shardyard.recipe.sweep.trials import Parameters, Trial, choices, rounded

# ASHA compares trials until the end of their runs, whose lengths may differ.
NO_END = 1 << 40


class Constants(TypedDict):
    """The values that all trials get: the path of the sweep's folder, and the working directory."""

    sweep: str
    cwd: str


class TrialConfig(Constants):
    """The configuration that Tune passes to a trial: also its number, and its parameters by dotted path."""

    number: int
    parameters: dict[str, object]


class Bayesian(Searcher):  # type: ignore[misc]
    """Optuna's suggestions as numbered trials; Optuna first gets the results of an interrupted sweep.

    Choices are passed to Optuna by index, because it does not support settings of several fields as values.
    """

    def __init__(self, sweep: Sweep, before: Sequence[TrialState], constants: Constants) -> None:
        super().__init__(metric=sweep.objective.metric, mode=sweep.objective.mode)
        self._sweep, self._constants = sweep, constants
        # Ended trials are passed as results; running and lost ones continue under their numbers.
        ended = [trial for trial in before if trial.state in ("finished", "stopped early") and trial.value is not None]
        self._waiting = [trial for trial in before if trial.state not in ("finished", "stopped early", "failed")]
        self._next = max((trial.number for trial in before), default=-1) + 1
        self._left = (sweep.budget.trials or 0) - self._next
        self._own: set[str] = set()
        self._optuna = _optuna(sweep, draws_before=self._next)
        for trial in ended:
            assert trial.value is not None
            self._optuna.add_evaluated_point(_encoded(sweep, trial.parameters), trial.value)

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial, or the mark that there are no more."""
        if self._waiting:
            trial = self._waiting.pop(0)
            return self._config(trial.number, trial.parameters)
        if self._left <= 0:
            return Searcher.FINISHED
        self._left -= 1
        number, self._next = self._next, self._next + 1
        self._own.add(trial_id)
        return self._config(number, _decoded(self._sweep, self._optuna.suggest(trial_id)))

    def on_trial_result(self, trial_id: str, result: Mapping[str, object]) -> None:
        if trial_id in self._own:
            self._optuna.on_trial_result(trial_id, result)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, object] | None = None, error: bool = False) -> None:
        if trial_id in self._own:
            self._optuna.on_trial_complete(trial_id, result=result, error=error)

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: a sweep is resumed from the folders of its runs."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: a sweep is resumed from the folders of its runs."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: object, **_: Any) -> bool:
        return True

    def _config(self, number: int, parameters: Parameters) -> TrialConfig:
        return {**self._constants, "number": number, "parameters": dict(parameters)}


def listed(trials: Sequence[Trial], constants: Constants) -> dict[str, object]:
    """A Tune parameter space with exactly these trials, in order."""
    # A single axis: Tune would form the product of two axes.
    table = {trial.number: trial.parameters for trial in trials}
    return {
        **constants,
        "number": tune.grid_search([trial.number for trial in trials]),
        "parameters": tune.sample_from(lambda config: table[config["number"]]),
    }


def scheduler_of(sweep: Sweep) -> TrialScheduler:
    """The scheduler that decides about running trials."""
    metric, mode = sweep.objective.metric, sweep.objective.mode
    if sweep.stopping is not None:
        return ASHAScheduler(
            time_attr="step",
            metric=metric,
            mode=mode,
            max_t=NO_END,
            grace_period=sweep.stopping.grace_steps,
            reduction_factor=sweep.stopping.reduction_factor,
        )
    if sweep.population is None:
        return FIFOScheduler()
    # Tune uses this generator to choose which member copies which, and the factors.
    random.seed(sweep.search.seed)
    return PopulationBasedTraining(
        time_attr="step",
        metric=metric,
        mode=mode,
        perturbation_interval=sweep.population.every,
        quantile_fraction=sweep.population.quantile,
        resample_probability=sweep.population.resample,
        hyperparam_mutations={"parameters": {name: _mutation(p) for name, p in sweep.parameters.items()}},
        custom_explore_fn=_Clamp(sweep),
        log_config=False,
        # All members are compared at the same step, so that the result does not depend on their speed.
        synch=True,
    )


class _Clamp:
    """Clamps perturbed values to their ranges."""

    def __init__(self, sweep: Sweep) -> None:
        self._ranges = {name: p for name, p in sweep.parameters.items() if p.min is not None}

    def __call__(self, config: TrialConfig) -> TrialConfig:
        values = config["parameters"]
        for name, parameter in self._ranges.items():
            values[name] = rounded(parameter, cast(float, values[name]))
        return config


def _mutation(parameter: Parameter) -> Any:
    return parameter.values if parameter.values is not None else _domain(parameter)


def _domain(parameter: Parameter) -> Any:
    assert parameter.min is not None
    assert parameter.max is not None
    if parameter.integer:
        low, high = math.ceil(parameter.min), math.floor(parameter.max) + 1  # Tune excludes the upper end
        return tune.lograndint(low, high) if parameter.scale == "log" else tune.randint(low, high)
    if parameter.scale == "log":
        return tune.loguniform(parameter.min, parameter.max)
    return tune.uniform(parameter.min, parameter.max)


def _optuna(sweep: Sweep, draws_before: int) -> OptunaSearch:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # In a resumed sweep the sampler restarts its random numbers; the same seed would repeat suggestions.
    seed = sweep.search.seed + draws_before
    distributions = {name: _distribution(name, p) for name, p in sweep.parameters.items()}
    return OptunaSearch(
        space=distributions,
        metric=sweep.objective.metric,
        mode=sweep.objective.mode,
        sampler=optuna.samplers.TPESampler(seed=seed),
    )


def _distribution(name: str, parameter: Parameter) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    options = choices(name, parameter)
    if options is not None:
        return CategoricalDistribution(list(range(len(options))))
    assert parameter.min is not None
    assert parameter.max is not None
    log = parameter.scale == "log"
    if parameter.integer:
        return IntDistribution(math.ceil(parameter.min), math.floor(parameter.max), log=log)
    return FloatDistribution(parameter.min, parameter.max, log=log)


def _decoded(sweep: Sweep, suggested: Mapping[str, float] | None) -> Parameters:
    if suggested is None:
        raise ShardyardError("Optuna suggested nothing")
    found: dict[str, object] = {}
    for name, parameter in sweep.parameters.items():
        options = choices(name, parameter)
        found |= {name: rounded(parameter, suggested[name])} if options is None else options[int(suggested[name])]
    return found


def _encoded(sweep: Sweep, parameters: Parameters) -> dict[str, object]:
    """The inverse of `_decoded`."""
    found: dict[str, object] = {}
    for name, parameter in sweep.parameters.items():
        options = choices(name, parameter)
        if options is None:
            found[name] = parameters[name]
        else:
            found[name] = next(i for i, o in enumerate(options) if all(parameters.get(k) == v for k, v in o.items()))
    return found
