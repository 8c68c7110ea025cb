"""Scaling laws: loss as a function of model size and training tokens, and derived optima. Pure mathematics.

Legend: N weights that multiply each token, D training tokens, L loss in nats per token, C ≈ 6·N·D training FLOPs.

Hoffmann et al. 2022 (arXiv:2203.15556), equation 2 and appendix D.3:  L(N, D) = E + A/N^α + B/D^β
Kaplan et al. 2020 (arXiv:2001.08361), equation 1.5:                    L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, TypedDict

FLOPS_PER_WEIGHT_AND_TOKEN = 6.0


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
        """N and D of minimum loss at C FLOPs (equation 4): N = G·(C/6)^(β/(α+β)), D = (C/6)^(α/(α+β)) / G."""
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
        """N and D of minimum loss at C FLOPs: where the derivative of (N_c/N)^r + 6·D_c·N/C is zero, r = α_N/α_D."""
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
    """A law and its goodness of fit: root mean square of the relative errors."""

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
        """Formula, error, and compute-optimal allocation, in three lines."""
        a, b = self.law.exponents
        return (
            f"{self.law.formula()}\n"
            f"{len(self.points)} models, off by {self.rms_error:.2%} (root mean square)\n"
            f"compute-optimal: N grows as C^{a:.3f}, D as C^{b:.3f}"
        )


def frontier(law: Law, least_flops: float, most_flops: float, count: int = 32) -> list[tuple[float, Point]]:
    """FLOPs and the best model for them, evenly spaced on a log scale."""
    found = []
    for index in range(count):
        flops = least_flops * (most_flops / least_flops) ** (index / (count - 1))
        n, d = law.optimum(flops)
        found.append((flops, Point(n, d, law.loss(n, d))))
    return found
