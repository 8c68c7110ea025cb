"""Trains a recipe with several seeds and prints the mean and the standard deviation of its last evaluation.

    python tests/benchmarks/seeds.py gpt/quickstart [--seeds 1234 1 2] [-s FIELD=VALUE …] [--local]

Every seed gets its own initial weights, data order and dropout; the held-out rows stay the same. A time budget
(`train.minutes`) does not apply: seeds are compared after the same steps. `shardyard eval` states the other error: that
of having evaluated only these rows.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from shardyard.tracking.metrics.record import evaluation_of
from shardyard.tracking.run.folder import list_runs, read_metrics

SEEDS = (1234, 1, 2)


def results(recipe: str, seed: int, more: Sequence[str], runs: Path) -> dict[str, float]:
    """The metrics of the last evaluation of a run with one seed."""
    command = [sys.executable, "-m", "shardyard.cli.main", "launch", recipe, "--runs-dir", str(runs)]
    subprocess.run([*command, "-s", f"train.seed={seed}", "-s", "train.minutes=", *more], check=True)
    (run,) = list_runs(runs)
    measured = [found for line in read_metrics(run.metrics) if (found := evaluation_of(line))]
    return measured[-1]


def summary(found: Mapping[int, Mapping[str, float]]) -> list[str]:
    """A line for each metric that all seeds have: mean ± standard deviation, and the values."""
    shared = set.intersection(*(set(one) for one in found.values()))
    first = next(iter(found.values()))
    lines = []
    for name in (name for name in first if name in shared):
        values = [one[name] for one in found.values()]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        each = ", ".join(f"{value:.4f}" for value in values)
        lines.append(f"{name:24} {statistics.fmean(values):.4f} ± {spread:.4f}   ({each})")
    return lines


def main() -> None:
    """Train with each seed, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("-s", dest="fields", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--local", action="store_true", help="train in one process, without Ray")
    given = parser.parse_args()
    more = [part for field in given.fields for part in ("-s", field)] + (["--local"] if given.local else [])
    found: dict[int, dict[str, float]] = {}
    for seed in given.seeds:
        with tempfile.TemporaryDirectory(prefix="seeds-") as folder:
            found[seed] = results(given.recipe, seed, more, Path(folder))
    title = f"{given.recipe}, seeds {', '.join(map(str, found))}: mean ± standard deviation"
    sys.stdout.write("\n".join([title, *summary(found), ""]))


if __name__ == "__main__":
    main()
