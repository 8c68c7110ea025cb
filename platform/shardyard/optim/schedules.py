"""Learning-rate schedules as pure functions of the step: nothing to save, nothing to restore.

`t` is the number of optimizer steps done before this one (0 for the first), `S` the steps of the run, `W` the warm-up
steps, `p = (t - W) / (S - W)` the progress after the warm-up, `m` the minimum ratio. Each schedule returns the factor
of the peak learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from shardyard.recipe.lengths import decay_steps, in_steps
from shardyard.recipe.schema import Schedule

Factor = Callable[[int], float]


def learning_rate_factor(schedule: Schedule, steps: int) -> Factor:
    """The factor of the peak learning rate at each step.

    Warm-up of all schedules: (t + 1) / W, so that the first step already changes the weights.
    """
    warmup = in_steps(schedule.warmup, steps, most=steps - 1)
    step_size = None if schedule.step_size is None else in_steps(schedule.step_size, steps)
    schedule = schedule.model_copy(update={"warmup": warmup, "step_size": step_size})
    shape = _SHAPES[schedule.name](schedule, steps)

    def factor(t: int) -> float:
        if t < warmup:
            return (t + 1) / warmup
        return shape(t)

    return factor


def _progress(t: int, schedule: Schedule, steps: int) -> float:
    return min(1.0, (t - schedule.warmup) / max(1, steps - schedule.warmup))


def _constant(schedule: Schedule, steps: int) -> Factor:
    return lambda t: 1.0


def _linear(schedule: Schedule, steps: int) -> Factor:
    """1 - (1 - m)·p."""
    return lambda t: 1.0 - (1.0 - schedule.min_ratio) * _progress(t, schedule, steps)


def _cosine(schedule: Schedule, steps: int) -> Factor:
    """m + (1 - m)·(1 + cos(π·p)) / 2 (Loshchilov & Hutter 2017, SGDR, without restarts)."""
    floor = schedule.min_ratio
    return lambda t: floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * _progress(t, schedule, steps)))


def _inverse_sqrt(schedule: Schedule, steps: int) -> Factor:
    """√(W / (t + 1)) after the warm-up (Vaswani et al. 2017, section 5.3)."""
    warmup = max(1, schedule.warmup)
    return lambda t: math.sqrt(warmup / max(warmup, t + 1))


def _step(schedule: Schedule, steps: int) -> Factor:
    """γ^⌊(t - W) / step_size⌋, not below m."""
    assert schedule.step_size is not None, "checked with the recipe"
    size = schedule.step_size
    return lambda t: float(max(schedule.min_ratio, schedule.gamma ** ((t - schedule.warmup) // size)))


def _exponential(schedule: Schedule, steps: int) -> Factor:
    """γ^p over the whole run, not below m."""
    return lambda t: float(max(schedule.min_ratio, schedule.gamma ** _progress(t, schedule, steps)))


def _wsd(schedule: Schedule, steps: int) -> Factor:
    """1 until the last `decay_fraction` of the run, then linearly to m (Hu et al. 2024, MiniCPM).

    If rounding makes warm-up and decay overlap, the decay begins at the end of the warm-up: the rate never jumps.
    """
    start = max(int(schedule.warmup), steps - decay_steps(schedule.decay_fraction, steps))

    def factor(t: int) -> float:
        if t < start:
            return 1.0
        done = (t - start) / max(1, steps - start)
        return 1.0 - (1.0 - schedule.min_ratio) * min(1.0, done)

    return factor


_SHAPES: dict[str, Callable[[Schedule, int], Factor]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "inverse_sqrt": _inverse_sqrt,
    "step": _step,
    "exponential": _exponential,
    "wsd": _wsd,
}
