"""Scaling laws: known constants are found again, and the published ones give the published allocation."""

from __future__ import annotations

import math
import random

import pytest

from shardyard.errors import UsageError
from shardyard.launch.sweep.law_fits import fit_hoffmann, fit_kaplan
from shardyard.launch.sweep.scaling_laws import Hoffmann, Kaplan, Law, Point, frontier

# Hoffmann et al. 2022, equation 10.
PUBLISHED = Hoffmann(irreducible=1.69, a=406.4, b=410.7, alpha=0.34, beta=0.28)
# Kaplan et al. 2020, table 2 and equation 1.5.
KAPLAN = Kaplan(n_c=6.4e13, d_c=1.8e13, alpha_n=0.076, alpha_d=0.103)


def points(law: Law, noise: float = 0.0) -> list[Point]:
    generator = random.Random(0)
    sizes, budgets = (1e7, 3e7, 1e8, 3e8, 1e9), (1e8, 1e9, 1e10, 1e11)
    grid = [(n, d) for n in sizes for d in budgets]
    return [Point(n, d, law.loss(n, d) * math.exp(generator.gauss(0.0, noise))) for n, d in grid]


def test_the_constants_of_exact_losses_are_found() -> None:
    fit = fit_hoffmann(points(PUBLISHED))
    assert isinstance(fit.law, Hoffmann)
    for name in ("irreducible", "a", "b", "alpha", "beta"):
        assert getattr(fit.law, name) == pytest.approx(getattr(PUBLISHED, name), rel=1e-3), name
    assert fit.rms_error < 1e-6


def test_noise_and_an_outlier_move_the_fit_little() -> None:
    noisy = points(PUBLISHED, noise=0.003)
    noisy[7] = Point(noisy[7].parameters, noisy[7].tokens, noisy[7].loss * 1.3)
    fit = fit_hoffmann(noisy)
    larger = (4e9, 4e11)
    assert fit.law.loss(*larger) == pytest.approx(PUBLISHED.loss(*larger), rel=0.02)


def test_kaplans_form_is_found() -> None:
    fit = fit_kaplan(points(KAPLAN))
    assert isinstance(fit.law, Kaplan)
    assert fit.law.alpha_n == pytest.approx(0.076, rel=1e-3)
    assert fit.law.alpha_d == pytest.approx(0.103, rel=1e-3)
    assert fit.as_dict()["form"] == "kaplan"


def test_the_published_constants_give_the_published_losses() -> None:
    """Gopher (280B weights, 300B tokens) and Chinchilla (70B, 1.4T), which used the same compute."""
    gopher, chinchilla = PUBLISHED.loss(280e9, 300e9), PUBLISHED.loss(70e9, 1.4e12)
    assert gopher == pytest.approx(1.993, abs=1e-3)
    assert chinchilla == pytest.approx(1.937, abs=1e-3)


def test_the_published_constants_give_the_published_allocation() -> None:
    """Equation 4: a = β/(α+β), b = α/(α+β); N and D grow almost alike."""
    a, b = PUBLISHED.exponents
    assert (a, b) == (pytest.approx(0.2800 / 0.6200), pytest.approx(0.3400 / 0.6200))
    n, d = PUBLISHED.optimum(5.76e23)
    g = (0.34 * 406.4 / (0.28 * 410.7)) ** (1 / 0.62)
    assert n == pytest.approx(g * (5.76e23 / 6) ** a)
    assert 6 * n * d == pytest.approx(5.76e23)
    ten_times, _ = PUBLISHED.optimum(5.76e24)
    assert ten_times / n == pytest.approx(10**a)


@pytest.mark.parametrize("law", [PUBLISHED, KAPLAN], ids=["hoffmann", "kaplan"])
def test_the_optimum_is_one(law: Law) -> None:
    for flops, best in frontier(law, 1e18, 1e24, count=5):
        assert best.loss == law.loss(best.parameters, best.tokens)
        for factor in (0.7, 1.4):
            n = best.parameters * factor
            assert law.loss(n, flops / (6 * n)) > best.loss


def test_too_little_to_fit_is_refused() -> None:
    few = points(PUBLISHED)
    with pytest.raises(UsageError, match="more than 5 finished trials"):
        fit_hoffmann(few[:5])
    with pytest.raises(UsageError, match="of 2 and 4"):
        fit_hoffmann(few[:8])
    with pytest.raises(UsageError, match="more than 4"):
        fit_kaplan([point for point in few if point.tokens == 1e8])


def test_the_description_names_what_was_fitted() -> None:
    text = fit_hoffmann(points(PUBLISHED)).describe()
    assert "L(N, D) = 1.69 + 406.4/N^0.34 + 410.7/D^0.28" in text
    assert "20 models" in text
    assert "N grows as C^0.452, D as C^0.548" in text
