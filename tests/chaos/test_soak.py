"""A short soak: random faults at short distance, and figures that are checked against the records of the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from chaos.box import possible
from chaos.soak import main
from shardyard.tracking.run.events import Attempt, read_events

FAULTS = 3


def busy_getting_back(run: Path) -> float:
    """Seconds in which no step was done that had not been done before, from the records alone: from the last line of
    each attempt but the last one until a later step than all before."""
    starts = [one.time or 0.0 for one in read_events(run / "events.jsonl") if isinstance(one, Attempt)][1:]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["time"], line["step"]) for line in lines if "train/loss" in line]
    total, until = 0.0, 0.0
    for start in starts:
        moment, _ = max(one for one in steps if one[0] < start)
        reached = max(step for at, step in steps if at < start)
        after = min(at for at, step in steps if step > reached)
        total += max(0.0, after - max(moment, until))
        until = max(until, after)
    return total


@pytest.mark.slow
@pytest.mark.skipif(not possible(), reason="makes namespaces of its own")
def test_a_soak_ends_like_the_undisturbed_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    often = ["--every", "2", "--faults", str(FAULTS), "--save-every", "20"]
    assert main(["--seed", "1", *often, "--check", "--folder", str(tmp_path)]) == 0, capsys.readouterr().out
    printed = capsys.readouterr().out
    assert "left over: nothing" in printed
    assert "against the undisturbed run: bitwise equal" in printed
    found = re.search(r"(\d+) faults in (\d+) s.*\nmade up for after: (.*) s\ngoodput (.*)%", printed)
    assert found is not None, printed
    count, seconds, each, goodput = found.groups()
    recoveries = [float(one) for one in each.split(", ")]
    assert (int(count), len(recoveries)) == (FAULTS, FAULTS)
    (run,) = (tmp_path / "soak" / "runs").iterdir()
    # The last line of an attempt is older than its fault by less than a step or two.
    assert sum(recoveries) == pytest.approx(busy_getting_back(run), abs=0.05 * float(seconds))
    assert float(goodput) / 100 == pytest.approx(1 - sum(recoveries) / float(seconds), abs=0.05)
    assert 0 < float(goodput) < 100
