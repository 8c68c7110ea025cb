"""`make bench` in small: both arms train the same, take turns, and what is said of them can be believed."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.turns import Turns, blocks, ratio
from support.waiting import PATIENCE_SECONDS

BENCH = Path(__file__).parents[1] / "benchmarks" / "step_time.py"


def bench(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(BENCH), *options], capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )


def test_the_first_steps_of_a_turn_and_a_turn_cut_short_do_not_count() -> None:
    assert blocks([9.0, 1.0, 2.0, 3.0, 9.0, 4.0, 5.0, 6.0, 9.0, 7.0], block=4, warm_up=1) == [2.0, 5.0]


def test_the_interval_holds_the_true_ratio_as_often_as_it_says() -> None:
    generator = random.Random(0)
    held = 0
    for _ in range(400):
        bare = [generator.uniform(0.1, 0.2) for _ in range(8)]
        found, low, high = ratio([1.02 * one * math.exp(generator.gauss(0, 0.05)) for one in bare], bare)
        assert low <= found <= high
        held += low <= 1.02 <= high
    assert 0.91 < held / 400 < 0.99
    assert ratio([2.0], [1.0]) == (2.0, 0.0, math.inf), "one pair says nothing of its accuracy"


@pytest.mark.parametrize("arms", [("platform", "bare"), ("platform", "bare", "trainer")])
def test_arms_take_turns_in_their_order(tmp_path: Path, arms: tuple[str, ...]) -> None:
    """Each makes three steps, one a turn, and none begins before the one before it is done."""
    order: list[str] = []

    def arm(name: str) -> None:
        turns = Turns(tmp_path, name, 0, 1, arms)
        turns.begin()
        for step in (1, 2, 3):
            order.append(name)
            turns.after(step)
        turns.end()

    threads = [threading.Thread(target=arm, args=(name,)) for name in reversed(arms)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == [*arms] * 3


@pytest.mark.slow
def test_the_opponent_trains_the_same_on_its_own() -> None:
    imported = (BENCH.parent / "bare_deepspeed.py").read_text().split("def ")[0]
    assert "from shardyard" not in imported
    assert "from support" not in imported
    small = ("--arms", "plain", "--pairs", "2", "--block", "4", "--warm-up", "2")
    done = bench(*small, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)["plain"]
    assert found["pairs"] == 2
    assert found["loss_difference"] < 1e-3
    assert found["low"] <= found["ratio"] <= found["high"]
    assert 0.2 < found["ratio"] < 5


# Calls a script with options after options, in one process that imports what it needs once; exit codes go to stdout.
CALLS = """
import json, runpy, sys
script, calls = sys.argv[1], json.loads(sys.argv[2])
sys.path.insert(0, script.rpartition("/")[0])
for options in calls:
    sys.argv = [script, *options]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        print(end.code)
        print("====", file=sys.stderr)
"""


@pytest.mark.slow
def test_what_cannot_be_measured_is_refused() -> None:
    cases = (
        (("--arms", "plain,fast"), "there is no arm fast"),
        (("--block", "3", "--warm-up", "3"), "--warm-up must be 2 or more, and less than --block"),
        (("--warm-up", "1"), "--warm-up must be 2 or more, and less than --block"),
    )
    command = [sys.executable, "-c", CALLS, str(BENCH), json.dumps([options for options, _ in cases])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS)
    assert done.stdout.split() == ["2"] * len(cases), done.stderr
    for (_, message), said in zip(cases, done.stderr.split("====\n"), strict=False):
        assert message in said
