"""The trials of a sweep and their values. Pure functions: the same sweep gives the same trials."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardyard.recipe.sweep.schema import Parameter, Sweep

# Values of fields by dotted path. They are passed unchanged to the recipe, which checks them.
Parameters = Mapping[str, object]
DRAWS_FOR_A_NEW_TRIAL = 100
NAME_LENGTH = 80


@dataclass(frozen=True)
class Trial:
    """One trial: its number from 0, and the values of its fields by dotted path."""

    number: int
    parameters: Parameters


def planned_trials(sweep: Sweep) -> list[Trial]:
    """The trials that are known before the sweep starts; none for a Bayesian search."""
    if sweep.search.name == "grid":
        found: Iterator[Parameters] = _grid(sweep)
    elif sweep.search.name == "bayesian":
        found = iter(())
    else:
        found = _draws(sweep)
    return [Trial(number, parameters) for number, parameters in enumerate(found)]


def trial_count(sweep: Sweep) -> int:
    """Number of trials of the sweep, without the test of a scaling law."""
    return sweep.budget.trials if sweep.search.name == "bayesian" else len(planned_trials(sweep))  # type: ignore[return-value]


def probes(sweep: Sweep) -> list[Parameters]:
    """Values to check before anything starts: the planned trials, else each choice and each bound of a range once."""
    planned = [trial.parameters for trial in planned_trials(sweep)]
    if not planned:
        ends = [_ends(name, parameter) for name, parameter in sweep.parameters.items()]
        longest = max(len(options) for options in ends)
        planned = [_joined(options[i % len(options)] for options in ends) for i in range(longest)]
    return planned


def choices(name: str, parameter: Parameter) -> Sequence[Parameters] | None:
    """The choices of a parameter as values by path; None for a range."""
    if parameter.settings is not None:
        return parameter.settings
    return None if parameter.values is None else [{name: value} for value in parameter.values]


def rounded(parameter: Parameter, value: float) -> float | int:
    """A value of a range, rounded to six significant digits or to a whole number; never outside the range."""
    assert parameter.min is not None
    assert parameter.max is not None
    value = min(parameter.max, max(parameter.min, value))
    return round(value) if parameter.integer else min(parameter.max, max(parameter.min, float(f"{value:.6g}")))


def as_overrides(parameters: Parameters) -> list[str]:
    """The `-s` arguments that set these fields."""
    return [f"{path}={json.dumps(value)}" for path, value in parameters.items()]


def trial_name(sweep: str, number: int) -> str:
    """Name of a trial's run: `lr-batch-007`."""
    ending = f"-{number:03d}"
    return sweep[: NAME_LENGTH - len(ending)] + ending


def shown(parameters: Parameters) -> str:
    """`optimizer.lr=0.003 train.global_batch=16`."""
    return " ".join(f"{path}={value}" for path, value in flat(parameters).items())


def flat(parameters: Parameters) -> Parameters:
    """The parameters with each key of a mapping as a field: `model.config={n_embd: 64}` → `model.config.n_embd=64`."""
    found: dict[str, object] = {}
    for path, value in parameters.items():
        if isinstance(value, dict) and value:
            found |= flat({f"{path}.{key}": below for key, below in value.items()})
        else:
            found[path] = value
    return found


def varying(parameters: Sequence[Parameters]) -> list[str]:
    """Fields, as returned by `flat`, whose values differ between trials; all fields if none differ."""
    rows = [flat(one) for one in parameters]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [name for name in names if len({json.dumps(row.get(name)) for row in rows}) > 1] or names


def _grid(sweep: Sweep) -> Iterator[Parameters]:
    options = [choices(name, parameter) or [] for name, parameter in sweep.parameters.items()]
    return (_joined(combination) for combination in itertools.product(*options))


def _draws(sweep: Sweep) -> Iterator[Parameters]:
    """Independent draws. A repeated combination is drawn again, as long as other combinations remain."""
    generator = random.Random(sweep.search.seed)
    seen: set[str] = set()
    for _ in range(sweep.budget.trials or 0):
        for _ in range(DRAWS_FOR_A_NEW_TRIAL):
            parameters = _joined(_draw(name, p, generator) for name, p in sweep.parameters.items())
            if (key := json.dumps(parameters, sort_keys=True)) not in seen:
                break
        else:
            if sweep.search.name == "random":
                return
        seen.add(key)
        yield parameters


def _draw(name: str, parameter: Parameter, generator: random.Random) -> Parameters:
    options = choices(name, parameter)
    if options is not None:
        return generator.choice(options)
    assert parameter.min is not None
    assert parameter.max is not None
    if parameter.integer and parameter.scale == "linear":
        return {name: generator.randint(math.ceil(parameter.min), math.floor(parameter.max))}
    if parameter.scale == "log":
        value = math.exp(generator.uniform(math.log(parameter.min), math.log(parameter.max)))
    else:
        value = generator.uniform(parameter.min, parameter.max)
    return {name: rounded(parameter, value)}


def _ends(name: str, parameter: Parameter) -> Sequence[Parameters]:
    options = choices(name, parameter)
    if options is not None:
        return options
    assert parameter.min is not None
    assert parameter.max is not None
    return [{name: rounded(parameter, parameter.min)}, {name: rounded(parameter, parameter.max)}]


def _joined(parts: Iterator[Parameters] | Sequence[Parameters]) -> Parameters:
    return {path: value for part in parts for path, value in part.items()}
