"""Scaling laws: loss over model size and training tokens, fitted, and what follows from them. Pure mathematics.

Legend: N weights that multiply each token, D training tokens, L loss in nats per token, C ≈ 6·N·D training FLOPs.

Hoffmann et al. 2022 (arXiv:2203.15556), equation 2 and appendix D.3:  L(N, D) = E + A/N^α + B/D^β
Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5:                    L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypedDict

from shardyard.errors import UsageError

FLOPS_PER_WEIGHT_AND_TOKEN = 6.0
# The paper's, in differences of log L: what is far off pulls no harder than linearly.
HUBER_DELTA = 1e-3
# L-BFGS starts from the best of the paper's grid of starting points, of which most lead to the same place.
STARTS = 24


@dataclass(frozen=True)
class Point:
    """One trained model."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Hoffmann:
    """L(N, D) = E + A/N^α + B/D^β."""

    irreducible: float
    a: float
    b: float
    alpha: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss."""
        return float(self.irreducible + self.a / parameters**self.alpha + self.b / tokens**self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """N and D of least loss at C FLOPs (equation 4): N = G·(C/6)^(β/(α+β)), D = (C/6)^(α/(α+β)) / G."""
        g = (self.alpha * self.a / (self.beta * self.b)) ** (1 / (self.alpha + self.beta))
        budget = flops / FLOPS_PER_WEIGHT_AND_TOKEN
        n = g * budget ** (self.beta / (self.alpha + self.beta))
        return n, budget / n

    @property
    def exponents(self) -> tuple[float, float]:
        """How the best N and D grow with C: N ∝ C^a, D ∝ C^b."""
        total = self.alpha + self.beta
        return self.beta / total, self.alpha / total

    def formula(self) -> str:
        """With its numbers."""
        return f"L(N, D) = {self.irreducible:.4g} + {self.a:.4g}/N^{self.alpha:.4g} + {self.b:.4g}/D^{self.beta:.4g}"


@dataclass(frozen=True)
class Kaplan:
    """L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D."""

    n_c: float
    d_c: float
    alpha_n: float
    alpha_d: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Predicted loss."""
        size = (self.n_c / parameters) ** (self.alpha_n / self.alpha_d)
        return float((size + self.d_c / tokens) ** self.alpha_d)

    def optimum(self, flops: float) -> tuple[float, float]:
        """N and D of least loss at C FLOPs: where the derivative of (N_c/N)^r + 6·D_c·N/C is zero, r = α_N/α_D."""
        r = self.alpha_n / self.alpha_d
        budget = flops / FLOPS_PER_WEIGHT_AND_TOKEN
        n = (r * self.n_c**r * budget / self.d_c) ** (1 / (r + 1))
        return n, budget / n

    @property
    def exponents(self) -> tuple[float, float]:
        """How the best N and D grow with C: N ∝ C^a, D ∝ C^b."""
        r = self.alpha_n / self.alpha_d
        return 1 / (r + 1), r / (r + 1)

    def formula(self) -> str:
        """With its numbers."""
        ratio = self.alpha_n / self.alpha_d
        return f"L(N, D) = [({self.n_c:.4g}/N)^{ratio:.4g} + {self.d_c:.4g}/D]^{self.alpha_d:.4g}"


Law = Hoffmann | Kaplan


class FitData(TypedDict):
    """A fit as plain data. `constants` by their names in the law; `exponents` of the compute-optimal frontier."""

    form: Literal["hoffmann", "kaplan"]
    constants: dict[str, float]
    exponents: dict[str, float]
    rms_error: float
    points: list[dict[str, float]]


@dataclass(frozen=True)
class Fit:
    """A law and how well it describes its points: root mean square of the relative errors."""

    law: Law
    points: tuple[Point, ...]
    rms_error: float

    def as_dict(self) -> FitData:
        """Plain data: form, constants, exponents of the compute-optimal frontier, error, points."""
        a, b = self.law.exponents
        return {
            "form": "hoffmann" if isinstance(self.law, Hoffmann) else "kaplan",
            "constants": asdict(self.law),
            "exponents": {"parameters": a, "tokens": b},
            "rms_error": self.rms_error,
            "points": [asdict(point) for point in self.points],
        }

    def describe(self) -> str:
        """Formula, error, and how to spend compute, in three lines."""
        a, b = self.law.exponents
        return (
            f"{self.law.formula()}\n"
            f"{len(self.points)} models, off by {self.rms_error:.2%} (root mean square)\n"
            f"compute-optimal: N grows as C^{a:.3f}, D as C^{b:.3f}"
        )


def fit_hoffmann(points: Sequence[Point]) -> Fit:
    """Fit by Huber's loss on log L and L-BFGS from a grid of starts, as in the paper.

    Raises:
        UsageError: too few points, sizes or budgets to tell the five constants.
    """
    _enough(points, constants=5)
    import numpy

    n, d, target = _logs(points)

    def terms(x: Any) -> Any:
        # One row a model: log of A/N^α, B/D^β and E.
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
    """Fit Kaplan's form in the same way.

    Raises:
        UsageError: too few points, sizes or budgets to tell the four constants.
    """
    _enough(points, constants=4)
    import numpy

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


def frontier(law: Law, least_flops: float, most_flops: float, count: int = 32) -> list[tuple[float, Point]]:
    """FLOPs and the best model that they buy, evenly on a log scale."""
    found = []
    for index in range(count):
        flops = least_flops * (most_flops / least_flops) ** (index / (count - 1))
        n, d = law.optimum(flops)
        found.append((flops, Point(n, d, law.loss(n, d))))
    return found


def _enough(points: Sequence[Point], *, constants: int) -> None:
    sizes, budgets = {point.parameters for point in points}, {point.tokens for point in points}
    if len(points) <= constants or len(sizes) < 3 or len(budgets) < 3:
        raise UsageError(
            f"a law of {constants} constants needs more than {constants} finished trials of at least 3 model sizes and "
            f"3 numbers of tokens; there are {len(points)} of {len(sizes)} and {len(budgets)}."
        )


def _logs(points: Sequence[Point]) -> tuple[Any, Any, Any]:
    import numpy

    table = numpy.log([[point.parameters, point.tokens, point.loss] for point in points])
    return table[:, 0], table[:, 1], table[:, 2]


def _sum_of_logs(rows: Any) -> tuple[Any, Any]:
    """Log of the sum of exponentials of each row, and the share of each term in it."""
    import numpy

    largest = rows.max(axis=1, keepdims=True)
    terms = numpy.exp(rows - largest)
    total = terms.sum(axis=1, keepdims=True)
    return (numpy.log(total) + largest)[:, 0], terms / total


def _huber(residual: Any) -> tuple[float, Any]:
    """Sum of Huber's losses in units of δ², which keeps L-BFGS from stopping at tiny slopes, and the slope of each."""
    import numpy

    size = numpy.abs(residual) / HUBER_DELTA
    losses = numpy.where(size <= 1, size**2 / 2, size - 0.5)
    return float(losses.sum()), numpy.sign(residual) * numpy.minimum(size, 1) / HUBER_DELTA


def _minimise(value_and_slope: Callable[[Any], tuple[float, Any]], starts: list[Any]) -> Any:
    import numpy
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
