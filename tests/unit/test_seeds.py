"""The benchmark of seeds: means, spreads and values of what all runs measured."""

from __future__ import annotations

import pytest

from benchmarks.seeds import summary


def test_the_summary_has_the_mean_and_the_spread_of_the_seeds() -> None:
    found = {
        1234: {"loss": 1.62, "perplexity": 5.0},
        1: {"loss": 1.71, "perplexity": 5.5, "late": 1.0},
        2: {"loss": 1.72},
    }
    assert summary(found) == [f"{'loss':24} 1.6833 ± 0.0551   (1.6200, 1.7100, 1.7200)"]
    (line,) = summary({7: {"loss": 1.5}})
    assert line.split()[1:4] == ["1.5000", "±", "0.0000"]


@pytest.mark.parametrize("seeds", [[1, 2], [1, 2, 3]])
def test_every_metric_has_a_line(seeds: list[int]) -> None:
    assert len(summary({seed: {"loss": 1.0, "accuracy": 0.5} for seed in seeds})) == 2
