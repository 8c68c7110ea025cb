"""Standard errors of an evaluation's metrics, from the sums of its passes over held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from shardyard.objectives.base import Totals

# With fewer groups, the spread between them says little.
FEWEST_GROUPS = 10


def jackknife(parts: Sequence[Totals], metrics: Callable[[Totals], Mapping[str, float]]) -> dict[str, float]:
    """The standard error of each metric: √((G - 1) / G · Σ (θ₋ᵢ - θ̄)²), where θ₋ᵢ leaves group i of G out.

    The delete-a-group jackknife (Efron and Stein 1981). Rows are independent, the targets within a row are not: a group
    has whole rows. For the mean of single rows this is the sample standard deviation over √G.

    Args:
        parts: the sums of each group; groups without targets do not count.
        metrics: all metrics of given sums.

    Returns:
        By name; empty if there are too few groups.
    """
    groups = [part for part in parts if any(part.counts.values())]
    if len(groups) < FEWEST_GROUPS:
        return {}
    total = _added(groups, torch.add)
    without = [metrics(_added([total, group], torch.sub)) for group in groups]
    factor = (len(groups) - 1) / len(groups)
    errors: dict[str, float] = {}
    for name in without[0]:
        values = [found[name] for found in without]
        mean = math.fsum(values) / len(values)
        errors[name] = math.sqrt(factor * math.fsum((value - mean) ** 2 for value in values))
    return errors


def of_share(share: float, number: int) -> float:
    """The standard error of a share of `number` independent rows: √(p·(1 - p) / (n - 1)); 0 of a single row."""
    return math.sqrt(share * (1 - share) / (number - 1)) if number > 1 else 0.0


def _added(parts: Sequence[Totals], add: Callable[[Tensor, Tensor], Tensor]) -> Totals:
    """The parts combined from left to right."""

    def numbers(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
        first, *others = each
        result = dict(first)
        for other in others:
            for name, value in other.items():
                result[name] = float(add(torch.tensor(result[name]).double(), torch.tensor(value).double()))
        return result

    observed = {name: value.clone() for name, value in parts[0].observed.items()}
    for part in parts[1:]:
        observed = {name: add(value, part.observed[name]) for name, value in observed.items()}
    return Totals(numbers([part.losses for part in parts]), observed, numbers([part.counts for part in parts]))
