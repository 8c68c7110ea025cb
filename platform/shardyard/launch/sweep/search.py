"""What Ray Tune needs to know of a sweep: where parameters come from, and which scheduler decides on running trials."""

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

# ASHA keeps comparing until the end of a run, whose length may differ among trials.
NO_END = 1 << 40


class Constants(TypedDict):
    """What all trials are told: the path of the sweep's folder, and the working directory."""

    sweep: str
    cwd: str


class TrialConfig(Constants):
    """What Tune hands to a trial: also its number, and the values of its fields by dotted path."""

    number: int
    parameters: dict[str, object]


class Bayesian(Searcher):  # type: ignore[misc]
    """Optuna's suggestions as numbered trials; what an interrupted sweep measured is told to it before.

    Choices are told to Optuna by their index: settings of several fields are no values that it knows.
    """

    def __init__(self, sweep: Sweep, before: Sequence[TrialState], constants: Constants) -> None:
        super().__init__(metric=sweep.objective.metric, mode=sweep.objective.mode)
        self._sweep, self._constants = sweep, constants
        # What ended is known; what was running or lost goes on, under its number.
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
        """The configuration of one more trial, or that there are no more."""
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
        """Nothing: a sweep goes on from the folders of its runs."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, as above."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: object, **_: Any) -> bool:
        return True

    def _config(self, number: int, parameters: Parameters) -> TrialConfig:
        return {**self._constants, "number": number, "parameters": dict(parameters)}


def listed(trials: Sequence[Trial], constants: Constants) -> dict[str, object]:
    """A parameter space of Tune that holds these very trials, in their order."""
    # One axis for both: two axes would be multiplied.
    table = {trial.number: trial.parameters for trial in trials}
    return {
        **constants,
        "number": tune.grid_search([trial.number for trial in trials]),
        "parameters": tune.sample_from(lambda config: table[config["number"]]),
    }


def scheduler_of(sweep: Sweep) -> TrialScheduler:
    """Who decides on running trials."""
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
    # Tune draws from this generator who takes over from whom, and the factors.
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
        # All members are compared at the same step, so that the result does not depend on which trains faster.
        synch=True,
    )


class _Clamp:
    """Keeps values of ranges within them when they are multiplied."""

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
        low, high = math.ceil(parameter.min), math.floor(parameter.max) + 1  # Tune leaves out the upper end
        return tune.lograndint(low, high) if parameter.scale == "log" else tune.randint(low, high)
    if parameter.scale == "log":
        return tune.loguniform(parameter.min, parameter.max)
    return tune.uniform(parameter.min, parameter.max)


def _optuna(sweep: Sweep, draws_before: int) -> OptunaSearch:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # A sampler begins its random numbers anew in a resumed sweep; the same seed would suggest what was tried.
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
