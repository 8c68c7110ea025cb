"""Every schedule against its formula, its bounds, and the same schedule of torch or transformers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    get_cosine_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from shardyard.optim.schedules import learning_rate_factor
from shardyard.recipe.schema import Schedule

STEPS, WARMUP = 100, 10


def factors(steps: int = STEPS, **settings: Any) -> list[float]:
    factor = learning_rate_factor(Schedule(**settings), steps)
    return [factor(t) for t in range(steps)]


NAMES = ("constant", "linear", "cosine", "inverse_sqrt", "step", "exponential", "wsd")


def extras(name: str) -> dict[str, Any]:
    return {"step_size": 20} if name == "step" else {}


@pytest.mark.parametrize("name", NAMES)
def test_the_warmup_rises_linearly_and_moves_at_once(name: str) -> None:
    found = factors(name=name, warmup=WARMUP, **extras(name))
    assert found[:WARMUP] == pytest.approx([(t + 1) / WARMUP for t in range(WARMUP)])
    assert found[WARMUP - 1] == 1.0
    assert factors(name=name, warmup=0, **extras(name))[0] == 1.0


def cosine(t: int) -> float:
    return 0.2 + 0.8 * (1 + math.cos(math.pi * (t - WARMUP) / (STEPS - WARMUP))) / 2


FORMULAS: dict[str, tuple[dict[str, Any], Callable[[int], float]]] = {
    "constant": ({}, lambda t: 1.0),
    "linear": ({"min_ratio": 0.2}, lambda t: 1 - 0.8 * (t - WARMUP) / (STEPS - WARMUP)),
    "cosine": ({"min_ratio": 0.2}, cosine),
    "inverse_sqrt": ({}, lambda t: math.sqrt(WARMUP / (t + 1))),
    "step": ({"min_ratio": 0.2, "step_size": 20, "gamma": 0.5}, lambda t: max(0.2, 0.5 ** ((t - WARMUP) // 20))),
    "exponential": ({"min_ratio": 0.01, "gamma": 0.1}, lambda t: 0.1 ** ((t - WARMUP) / (STEPS - WARMUP))),
    "wsd": ({"min_ratio": 0.2, "decay_fraction": 0.3}, lambda t: 1 - 0.8 * max(0, t - 70) / 30),
}


@pytest.mark.parametrize("name", NAMES)
def test_each_follows_its_formula_after_the_warmup(name: str) -> None:
    settings, formula = FORMULAS[name]
    found = factors(name=name, warmup=WARMUP, **settings)
    for t in (10, 11, 29, 30, 49, 50, 69, 70, 71, 89, 99):
        assert found[t] == pytest.approx(formula(t), rel=1e-12), t


def test_the_cosine_is_half_way_down_in_the_middle_and_keeps_its_floor() -> None:
    factor = learning_rate_factor(Schedule(name="cosine", warmup=10, min_ratio=0.2), STEPS)
    assert factor(55) == pytest.approx(0.6)
    assert factor(100) == factor(10_000) == pytest.approx(0.2)


def test_steps_drop_at_multiples_of_their_size_and_stop_at_the_floor() -> None:
    found = factors(name="step", step_size=20, gamma=0.5, min_ratio=0.2)
    assert [found[t] for t in (0, 19, 20, 39, 40, 59, 60, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]


def test_wsd_warms_up_stays_and_decays_at_the_end_only() -> None:
    found = factors(name="wsd", warmup=10, min_ratio=0.0, decay_fraction=0.2)
    assert found[10:81] == [1.0] * 71
    tail = found[80:]
    assert [a - b for a, b in pairwise(tail)] == pytest.approx([1 / 20] * 19)
    assert tail[-1] == pytest.approx(1 / 20)


@given(
    steps=st.integers(2, 400),
    warmup=st.floats(0.001, 0.999),
    decay=st.floats(0.001, 0.999),
)
def test_shares_of_wsd_never_make_the_rate_jump(steps: int, warmup: float, decay: float) -> None:
    """Rounding may make the two parts overlap, where whole steps would be refused."""
    factor = learning_rate_factor(Schedule(name="wsd", warmup=warmup, decay_fraction=decay), steps)
    found = [factor(t) for t in range(steps)]
    peak = found.index(max(found))
    assert found[peak] == 1.0
    assert found[:peak] == sorted(found[:peak])
    falling = found[peak:]
    assert falling == sorted(falling, reverse=True)
    # It falls by equal steps, the first from the peak itself.
    drops = [a - b for a, b in pairwise(falling) if a != b]
    assert drops == pytest.approx(drops[:1] * len(drops))


@given(
    name=st.sampled_from(NAMES),
    steps=st.integers(2, 400),
    warmup=st.floats(0, 0.99),
    share=st.booleans(),
    floor=st.floats(0, 1),
    decay=st.floats(0.01, 1),
    gamma=st.floats(0.1, 1),
)
def test_no_schedule_jumps_except_the_steps_of_step(
    name: Any, steps: int, warmup: float, share: bool, floor: float, decay: float, gamma: float
) -> None:
    """From one step to the next, the rate changes by no more than the steepest place of its formula, also where
    warm-up and decay overlap: a warm-up of 50 and a decay of 90 of 100 steps once fell from 1.0 to 0.6 at once."""
    rise = max(0.001, warmup) if share else int(warmup * steps)
    schedule = Schedule(
        name=name, warmup=rise, min_ratio=floor, decay_fraction=decay, gamma=gamma, step_size=max(2, steps // 5)
    )
    found = [learning_rate_factor(schedule, steps)(t) for t in range(steps)]
    whole = min(steps - 1, max(1, round(rise * steps))) if share else int(rise)
    after = steps - whole
    steepest = {
        "constant": 0.0,
        "linear": (1 - floor) / after,
        "cosine": (1 - floor) * math.pi / 2 / after,
        "inverse_sqrt": 1 / (2 * max(1, whole)),
        "step": 1 - gamma,
        "exponential": 1 - gamma ** (1 / after),
        "wsd": (1 - floor) / min(after, max(1, round(decay * steps))),
    }[name]
    bound = max(1 / whole if whole else 0.0, steepest) + 1e-12
    assert max(abs(b - a) for a, b in pairwise(found)) <= bound
    if name == "step":
        falls = [t for t in range(whole + 1, steps) if found[t] < found[t - 1]]
        assert all((t - whole) % max(2, steps // 5) == 0 for t in falls)


def test_exponential_ends_at_gamma_whatever_the_length() -> None:
    for steps in (10, 1000):
        factor = learning_rate_factor(Schedule(name="exponential", gamma=0.3, min_ratio=0.0), steps)
        assert factor(steps) == pytest.approx(0.3)


@given(
    name=st.sampled_from(NAMES),
    steps=st.integers(1, 5000),
    warmup_share=st.floats(0, 0.99),
    floor=st.floats(0, 1),
    decay=st.floats(0.01, 1),
    gamma=st.floats(0.5, 1),
    where=st.floats(0, 0.9999),
)
def test_a_factor_is_above_zero_and_at_most_one(
    name: Any, steps: int, warmup_share: float, floor: float, decay: float, gamma: float, where: float
) -> None:
    schedule = Schedule(
        name=name,
        warmup=int(warmup_share * steps),
        min_ratio=floor,
        decay_fraction=decay,
        gamma=gamma,
        # At most a hundred drops: 0.5 to the power of thousands is zero in floating point.
        step_size=max(1, steps // 100),
    )
    t = int(where * steps)
    factor = learning_rate_factor(schedule, steps)(t)
    assert 0 < factor <= 1
    if t >= schedule.warmup and name not in ("constant", "inverse_sqrt"):
        assert factor >= min(floor, 1) - 1e-12
    if t >= schedule.warmup:
        assert learning_rate_factor(schedule, steps)(t + 1) <= factor + 1e-12


def reference(build: Callable[[torch.optim.Optimizer], Any], steps: int = STEPS) -> list[float]:
    """The learning rates that a scheduler of torch or transformers gives from a peak of 1."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = build(optimizer)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


# Theirs warms up from zero: its step t has t / W, ours (t + 1) / W. After the warm-up both are the same.
def test_cosine_agrees_with_transformers() -> None:
    theirs = reference(lambda optimizer: get_cosine_schedule_with_warmup(optimizer, WARMUP, STEPS))
    ours = factors(name="cosine", warmup=WARMUP, min_ratio=0.0)
    assert ours[WARMUP:] == pytest.approx(theirs[WARMUP:], abs=1e-12)
    assert ours[: WARMUP - 1] == pytest.approx(theirs[1:WARMUP], abs=1e-12)


def test_linear_agrees_with_transformers() -> None:
    theirs = reference(lambda optimizer: get_linear_schedule_with_warmup(optimizer, WARMUP, STEPS))
    assert factors(name="linear", warmup=WARMUP, min_ratio=0.0)[WARMUP:] == pytest.approx(theirs[WARMUP:], abs=1e-12)


def test_inverse_sqrt_agrees_with_transformers() -> None:
    """Vaswani et al. count steps from 1, transformers from 0: its step t + 1 is our step t."""
    theirs = reference(lambda optimizer: get_inverse_sqrt_schedule(optimizer, WARMUP), STEPS + 1)
    assert factors(name="inverse_sqrt", warmup=WARMUP) == pytest.approx(theirs[1:], abs=1e-12)


def test_wsd_agrees_with_transformers() -> None:
    theirs = reference(
        lambda optimizer: get_wsd_schedule(
            optimizer, WARMUP, num_decay_steps=20, num_stable_steps=70, min_lr_ratio=0.1, decay_type="linear"
        )
    )
    ours = factors(name="wsd", warmup=WARMUP, min_ratio=0.1, decay_fraction=0.2)
    assert ours[WARMUP:] == pytest.approx(theirs[WARMUP:], abs=1e-12)


def test_step_and_exponential_agree_with_torch() -> None:
    theirs = reference(lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30, gamma=0.5))
    assert factors(name="step", step_size=30, gamma=0.5, min_ratio=0.0) == pytest.approx(theirs, abs=1e-12)
    # torch's gamma is that of one step, ours that of the run.
    theirs = reference(lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5 ** (1 / STEPS)))
    assert factors(name="exponential", gamma=0.5, min_ratio=0.0) == pytest.approx(theirs, abs=1e-12)
