"""What counts as an anomaly, what follows, and that a resumed policy decides the same."""

from __future__ import annotations

import json
import math
import random
from statistics import NormalDist

import numpy as np
import pytest

from shardyard.engine.anomalies.policy import MAD_TO_SIGMA, Policy, robust_score
from shardyard.recipe.sections.anomalies import Anomalies

SKIPS = Anomalies(on_nan="skip", on_spike="skip", window=64)


def noisy(seed: int = 0, steps: int = 100) -> list[tuple[float, float]]:
    """Losses that fall, and norms, both with noise."""
    generator = random.Random(seed)
    return [
        (3.0 * math.exp(-step / 80) + generator.gauss(0, 0.02), 1 + generator.gauss(0, 0.1)) for step in range(steps)
    ]


def test_the_deviation_is_that_of_a_normal_distribution() -> None:
    assert 1 / NormalDist().inv_cdf(0.75) == pytest.approx(MAD_TO_SIGMA, abs=1e-4)
    values = np.random.default_rng(3).normal(5.0, 2.0, 20_001).tolist()
    score, middle = robust_score(9.0, values)
    assert middle == pytest.approx(5.0, abs=0.05)
    assert score == pytest.approx(2.0, abs=0.05)


def test_a_few_spikes_in_the_window_do_not_hide_the_next() -> None:
    values = [2.0 + 0.01 * (index % 5) for index in range(40)] + [50.0] * 5
    assert robust_score(3.0, values)[0] > 6
    plain = (3.0 - np.mean(values)) / np.std(values)
    assert plain < 0, "mean and standard deviation would not see it"


def test_values_that_do_not_move_have_a_least_deviation() -> None:
    assert robust_score(2.0, [2.0] * 8) == (0.0, 2.0)
    assert robust_score(2.01, [2.0] * 8)[0] == pytest.approx(5.0)
    assert robust_score(1e-9, [0.0] * 8)[0] == math.inf


def test_a_falling_noisy_loss_is_no_spike_and_a_leap_is() -> None:
    for seed in range(20):
        policy = Policy(SKIPS)
        assert [policy.judge(step, *one) for step, one in enumerate(noisy(seed), 1)] == [None] * 100
        found = policy.judge(101, 4.0, 1.0)
        assert found is not None
        assert (found.kind, found.signal, found.action, found.skips, found.count) == ("spike", "loss", "skip", True, 1)
        assert found.score is not None
        assert found.score > 6
        found = policy.judge(102, 2.0, 9.0)
        assert found is not None
        assert (found.signal, found.count) == ("grad_norm", 2)


def test_no_spike_is_seen_before_half_of_the_window() -> None:
    policy = Policy(SKIPS)
    for step, one in enumerate(noisy(steps=31), 1):
        assert policy.judge(step, *one) is None
    assert policy.judge(32, 99.0, 1.0) is None
    assert policy.judge(33, 999.0, 1.0) is not None


@pytest.mark.parametrize(("loss", "norm", "signal"), [(math.nan, 1.0, "loss"), (2.0, math.inf, "grad_norm")])
def test_what_is_not_finite_is_found_at_once(loss: float, norm: float, signal: str) -> None:
    found = Policy(Anomalies(on_nan="rollback")).judge(1, loss, norm)
    assert found is not None
    assert (found.kind, found.signal, found.action, found.skips) == ("nan", signal, "rollback", False)


def test_a_skipped_value_is_not_compared_with() -> None:
    policy = Policy(SKIPS)
    for step, one in enumerate(noisy(), 1):
        policy.judge(step, *one)
    assert [policy.judge(101 + more, 9.0, 1.0) is not None for more in range(9)] == [True] * 9


def test_after_at_most_actions_the_run_ends() -> None:
    policy = Policy(Anomalies(on_nan="skip", at_most=2), rolled_back=1)
    first, second = policy.judge(1, math.nan, 1.0), policy.judge(2, math.nan, 1.0)
    assert first is not None
    assert second is not None
    assert (first.action, first.count, first.exceeded) == ("skip", 2, False)
    assert (second.action, second.count, second.exceeded) == ("stop", 2, True)


def test_a_lowered_rate_lasts_as_long_as_the_recipe_says() -> None:
    policy = Policy(Anomalies(on_nan="lower_rate", rate_factor=0.5, rate_steps=3))
    policy.judge(5, math.nan, 1.0)
    policy.judge(7, math.nan, 1.0)
    assert [policy.rate_factor(step) for step in range(5, 12)] == [1.0, 0.5, 0.5, 0.25, 0.5, 0.5, 1.0]
    for_ever = Policy(Anomalies(on_nan="lower_rate", rate_factor=0.1))
    for_ever.judge(5, math.nan, 1.0)
    assert for_ever.rate_factor(10**9) == 0.1


def test_another_stage_is_compared_with_nothing_from_before() -> None:
    policy = Policy(SKIPS, stage=lambda step: step > 100)
    for step, one in enumerate(noisy(), 1):
        policy.judge(step, *one)
    assert policy.judge(101, 9.0, 1.0) is None


def test_a_policy_goes_on_from_its_state_and_decides_the_same() -> None:
    values = noisy(5, 60)
    values[30] = (math.nan, 1.0)
    values[45] = (7.0, 1.0)
    straight = Policy(Anomalies(on_nan="lower_rate", on_spike="skip", window=16))
    whole = [straight.judge(step, *one) for step, one in enumerate(values, 1)]
    for cut in (10, 31, 46):
        before = Policy(Anomalies(on_nan="lower_rate", on_spike="skip", window=16))
        for step, one in enumerate(values[:cut], 1):
            before.judge(step, *one)
        after = Policy(Anomalies(on_nan="lower_rate", on_spike="skip", window=16))
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        rest = [after.judge(step, *one) for step, one in enumerate(values[cut:], cut + 1)]
        assert str(rest) == str(whole[cut:])
        assert [after.rate_factor(step) for step in range(60)] == [straight.rate_factor(step) for step in range(60)]
