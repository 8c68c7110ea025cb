"""Rules that the schema of sweeps cannot express: fields that are valid alone but not together."""

from __future__ import annotations

import math
from collections.abc import Iterator

from shardyard.objectives.registry import objective_spec
from shardyard.recipe.fields import Path, UnknownFieldError, field_at
from shardyard.recipe.lengths import in_steps
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sweep.schema import CHANGEABLE, FIXED, Parameter, Sweep
from shardyard.suggest import suggestion

EVALUATION = "eval/validation/"
Finding = tuple[Path, str]


def check(sweep: Sweep, recipe: Recipe) -> list[Finding]:
    """All rules that a sweep and its recipe break, as (path, message)."""
    rules = (_parameters, _fields, _twice, _search, _population, _objective, _stopping, _scaling_law)
    return [finding for rule in rules for finding in rule(sweep, recipe)]


def _parameters(sweep: Sweep, recipe: Recipe) -> Iterator[Finding]:
    for name, parameter in sweep.parameters.items():
        at: Path = ("parameters", name)
        ranged = parameter.min is not None or parameter.max is not None
        given = [parameter.values is not None, parameter.settings is not None, ranged]
        if sum(given) != 1:
            yield at, "has to have one of: values, settings, or min and max"
        elif ranged:
            yield from _range(at, parameter)
        elif parameter.integer or parameter.scale != "linear":
            yield at, "scale and integer belong to a range of min and max"


def _range(at: Path, parameter: Parameter) -> Iterator[Finding]:
    if parameter.min is None or parameter.max is None:
        yield at, "a range has both min and max"
    elif parameter.min >= parameter.max:
        yield at, f"min {parameter.min:g} has to be less than max {parameter.max:g}"
    elif parameter.scale == "log" and parameter.min <= 0:
        yield at, f"a range on a log scale begins above 0, got min {parameter.min:g}"
    elif parameter.integer and math.ceil(parameter.min) > math.floor(parameter.max):
        yield at, "the range holds no whole number"


def _fields(sweep: Sweep, recipe: Recipe) -> Iterator[Finding]:
    """Every dotted path must be a recipe field that may vary."""
    for at, field in _paths(sweep):
        try:
            field_at(field.split("."))
        except UnknownFieldError as unknown:
            hint = "" if "." in field else "; a name that is not a field goes with `settings`"
            yield at, f"{field}: {unknown.message}{hint}"
            continue
        if field.partition(".")[0] in FIXED:
            yield at, f"{field} is the same in all trials; set it in the recipe or in `overrides`"
        if field == "train.minutes":
            yield at, "trials are compared at the same steps, not by the clock; vary train.steps or train.tokens"


def _paths(sweep: Sweep) -> Iterator[tuple[Path, str]]:
    for name, parameter in sweep.parameters.items():
        if parameter.settings is None:
            yield ("parameters", name), name
        for index, setting in enumerate(parameter.settings or ()):
            for field in setting:
                yield ("parameters", name, "settings", index, field), field
    for field in sweep.scaling_law.test if sweep.scaling_law is not None else ():
        yield ("scaling_law", "test", field), field


def _twice(sweep: Sweep, recipe: Recipe) -> Iterator[Finding]:
    owners: dict[str, str] = {}
    for name, parameter in sweep.parameters.items():
        fields = {field for setting in parameter.settings or ({name: None},) for field in setting}
        for field in sorted(fields):
            if field in owners:
                yield ("parameters", name), f"{field} is set in {owners[field]} as well; keep one"
            owners[field] = f"parameters.{name}"


def _search(sweep: Sweep, recipe: Recipe) -> Iterator[Finding]:
    ranges = [name for name, p in sweep.parameters.items() if p.min is not None]
    if sweep.search.name == "grid":
        for name in ranges:
            yield ("parameters", name), "a grid needs values, not a range; list them, or search random or bayesian"
        size = math.prod(max(1, len(p.values or p.settings or ())) for p in sweep.parameters.values())
        if not ranges and sweep.budget.trials is not None and sweep.budget.trials < size:
            message = (
                f"the grid has {size} combinations, {sweep.budget.trials} trials are allowed; search random instead"
            )
            yield ("budget", "trials"), message
    elif sweep.budget.trials is None:
        yield ("budget", "trials"), f"a search of the kind {sweep.search.name} needs a number of trials"


def _population(sweep: Sweep, recipe: Recipe) -> Iterator[Finding]:
    if sweep.search.name != "population":
        if sweep.population is not None:
            yield ("population",), "belongs to search.name population"
        return
    if sweep.population is None:
        yield ("search", "name"), "population needs the section population, with `every`"
    if sweep.stopping is not None:
        yield ("stopping",), "a population replaces members instead of stopping them; leave it out"
    if sweep.budget.trials == 1:
        yield ("budget", "trials"), "a population has at least two members"
    if sweep.scaling_law is not None:
        yield ("scaling_law",), "the sizes of a population are all the same; leave it out"
    for name, parameter in sweep.parameters.items():
        if parameter.settings is not None:
            yield ("parameters", name), "members of a population change single fields; give values or a range"
        elif name not in CHANGEABLE:
            message = (
                f"{name} cannot change when a run continues from a checkpoint; fields that can: {', '.join(CHANGEABLE)}"
            )
            yield ("parameters", name), message
    steps = recipe.train.steps
    if sweep.population is not None and steps is not None and sweep.population.every >= steps:
        message = f"{sweep.population.every} steps between comparisons leave none in a run of {steps} steps"
        yield ("population", "every"), message


def _objective(sweep: Sweep, recipe: Recipe) -> Iterator[Finding]:
    metric = sweep.objective.metric
    names = [EVALUATION + name for name in ("loss", *objective_spec(recipe.objective).metrics)]
    if metric not in names:
        hint = suggestion(metric, names)
        yield ("objective", "metric"), f"evaluations of {recipe.objective} have no {metric!r}; {hint}"
        return
    larger = objective_spec(recipe.objective).metrics.get(metric.removeprefix(EVALUATION), False)
    if larger != (sweep.objective.mode == "max"):
        yield ("objective", "mode"), f"{'larger' if larger else 'smaller'} values of {metric} are better"


def _stopping(sweep: Sweep, recipe: Recipe) -> Iterator[Finding]:
    steps = recipe.train.steps
    if sweep.stopping is None or steps is None:
        return
    every = max(1, steps // 10) if recipe.evaluate.every is None else in_steps(recipe.evaluate.every, steps)
    if sweep.stopping.grace_steps >= steps:
        message = f"{sweep.stopping.grace_steps} steps are not before the end of a run of {steps} steps"
        yield ("stopping", "grace_steps"), message
    elif every > sweep.stopping.grace_steps:
        message = f"the first evaluation is at step {every}, after {sweep.stopping.grace_steps} steps of grace"
        yield ("stopping", "grace_steps"), message


def _scaling_law(sweep: Sweep, recipe: Recipe) -> Iterator[Finding]:
    if sweep.scaling_law is None:
        return
    if sweep.stopping is not None:
        yield ("stopping",), "a scaling law is fitted to trials that end; leave it out"
    if sweep.objective.metric != f"{EVALUATION}loss":
        yield ("objective", "metric"), f"a scaling law is one of {EVALUATION}loss"
