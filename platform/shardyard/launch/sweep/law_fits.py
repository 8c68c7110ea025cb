"""Fitting scaling laws to trained models: Huber's loss on log L, by L-BFGS from a grid of starts, as in the papers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from shardyard.errors import UsageError
from shardyard.launch.sweep.scaling_laws import Fit, Hoffmann, Kaplan, Law, Point

# From the paper, in differences of log L: the influence of outliers grows only linearly.
HUBER_DELTA = 1e-3
# L-BFGS starts only from the best points of the paper's grid, because most lead to the same optimum.
STARTS = 24


def fit_hoffmann(points: Sequence[Point]) -> Fit:
    """Fit by Huber's loss on log L and L-BFGS from a grid of starts, as in the paper.

    Raises:
        UsageError: too few points, sizes or budgets to determine the five constants.
    """
    _enough(points, constants=5)
    n, d, target = _logs(points)

    def terms(x: Any) -> Any:
        # One row per model: log of A/N^α, B/D^β and E.
        a, b, e, alpha, beta = x
        return numpy.stack([a - alpha * n, b - beta * d, numpy.full_like(n, e)], axis=1)

    def value_and_slope(x: Any) -> tuple[float, Any]:
        total, share = _sum_of_logs(terms(x))
        value, weight = _huber(total - target)
        share = share * weight[:, None]
        slope = [share[:, 0].sum(), share[:, 1].sum(), share[:, 2].sum(), -(share[:, 0] * n).sum()]
        return value, numpy.array([*slope, -(share[:, 1] * d).sum()])

    grid = itertools.product(range(0, 30, 5), range(0, 30, 5), (-1, -0.5, 0, 0.5, 1), *[(0.1, 0.5, 1, 1.5, 2)] * 2)
    a, b, e, alpha, beta = _minimise(value_and_slope, [numpy.array(start, dtype=float) for start in grid])
    return _fit(Hoffmann(math.exp(e), math.exp(a), math.exp(b), float(alpha), float(beta)), points)


def fit_kaplan(points: Sequence[Point]) -> Fit:
    """Fit Kaplan's form with the same method.

    Raises:
        UsageError: too few points, sizes or budgets to determine the four constants.
    """
    _enough(points, constants=4)
    n, d, target = _logs(points)

    def value_and_slope(x: Any) -> tuple[float, Any]:
        # log L = α_D · log(exp(r·(log N_c − log N)) + exp(log D_c − log D)), with r = α_N/α_D.
        log_n, log_d, r, log_alpha = x
        alpha = math.exp(log_alpha)
        rows = numpy.stack([r * (log_n - n), log_d - d], axis=1)
        total, share = _sum_of_logs(rows)
        value, weight = _huber(alpha * total - target)
        share = share * (weight * alpha)[:, None]
        slope = [(share[:, 0] * r).sum(), share[:, 1].sum(), (share[:, 0] * (log_n - n)).sum()]
        return value, numpy.array([*slope, (weight * alpha * total).sum()])

    grid = itertools.product(range(5, 40, 5), range(5, 40, 5), (0.5, 1.0, 1.5), (-3.0, -2.0, -1.0))
    log_n, log_d, r, log_alpha = _minimise(value_and_slope, [numpy.array(start, dtype=float) for start in grid])
    alpha = math.exp(log_alpha)
    return _fit(Kaplan(math.exp(log_n), math.exp(log_d), float(r) * alpha, alpha), points)


def _enough(points: Sequence[Point], *, constants: int) -> None:
    sizes, budgets = {point.parameters for point in points}, {point.tokens for point in points}
    if len(points) <= constants or len(sizes) < 3 or len(budgets) < 3:
        raise UsageError(
            f"a law of {constants} constants needs more than {constants} finished trials of at least 3 model sizes and "
            f"3 numbers of tokens; there are {len(points)} of {len(sizes)} and {len(budgets)}."
        )


def _logs(points: Sequence[Point]) -> tuple[Any, Any, Any]:
    table = numpy.log([[point.parameters, point.tokens, point.loss] for point in points])
    return table[:, 0], table[:, 1], table[:, 2]


def _sum_of_logs(rows: Any) -> tuple[Any, Any]:
    """The log-sum-exp of each row, and the share of each term in the sum."""
    largest = rows.max(axis=1, keepdims=True)
    terms = numpy.exp(rows - largest)
    total = terms.sum(axis=1, keepdims=True)
    return (numpy.log(total) + largest)[:, 0], terms / total


def _huber(residual: Any) -> tuple[float, Any]:
    """Sum of Huber losses in units of δ², so that small gradients do not stop L-BFGS, and the gradient of each."""
    size = numpy.abs(residual) / HUBER_DELTA
    losses = numpy.where(size <= 1, size**2 / 2, size - 0.5)
    return float(losses.sum()), numpy.sign(residual) * numpy.minimum(size, 1) / HUBER_DELTA


def _minimise(value_and_slope: Callable[[Any], tuple[float, Any]], starts: list[Any]) -> Any:
    from scipy.optimize import minimize  # type: ignore[import-untyped]

    with numpy.errstate(all="ignore"):
        starts.sort(key=lambda start: value_and_slope(start)[0])
        results = [
            minimize(value_and_slope, start, jac=True, method="L-BFGS-B", options={"maxiter": 200})
            for start in starts[:STARTS]
        ]
        best = min(results, key=lambda result: float(result.fun)).x
        exact = {"maxiter": 20_000, "maxfun": 20_000, "ftol": 1e-15, "gtol": 1e-9}
        return minimize(value_and_slope, best, jac=True, method="L-BFGS-B", options=exact).x


def _fit(law: Law, points: Sequence[Point]) -> Fit:
    errors = [law.loss(point.parameters, point.tokens) / point.loss - 1 for point in points]
    return Fit(law, tuple(points), math.sqrt(sum(error**2 for error in errors) / len(errors)))
