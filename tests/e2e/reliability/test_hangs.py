"""A run on Ray whose ranks hang: this is noticed, reported and restarted; and a slow rank is named.

A rank that skips a collective without a loop is in `tests/unit/engine/watch/test_collectives.py`, without the restart.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from shardyard.tracking.run.events import AttemptFailed, Hang, Straggler, read_events
from support.cli import Command, write_recipe
from support.reliability.faults import faults_in
from support.tiny import write_corpus
from support.waiting import until

pytestmark = pytest.mark.slow

HANG_SECONDS = 2.0


def test_hangs_are_noticed_told_and_restarted(tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    recipe = write_recipe(
        tmp_path,
        write_corpus(tmp_path),
        cluster={"workers": 2, "max_failures": 5, "watchdog": {"hang_seconds": HANG_SECONDS}},
        train={"steps": 80},
        evaluate={"every": 1000},
        checkpoint={"every": 10},
        hooks=faults_in(marks, loops=25, dawdles=35),
    )
    with Command("launch", recipe, runs=tmp_path / "runs") as command:
        command.wait_for_step(8)
        workers = [one for one in command.descendants() if "RankWorker" in " ".join(one.cmdline())]
        pids = command.info()["placement"][0]["pids"]
        os.kill(pids[1], signal.SIGSTOP)
        code, output = command.finish()
        assert code == 0, output
        until(lambda: not [one for one in workers if one.is_running() and one.status() != psutil.STATUS_ZOMBIE], "gone")
    events = read_events(command.folder / "events.jsonl")
    stopped, looped = (one for one in events if isinstance(one, Hang))
    assert [hang.ranks for hang in (stopped, looped)] == [(1,), (1,)]
    assert "rank 1 is stopped by a signal (SIGSTOP)" in stopped.text
    assert "rank 1 did not come to all_reduce #1 of 3 float32" in looped.text
    assert looped.text.endswith("it is in forward")
    assert "faults.py" in _row(looped, 1)
    assert "before_forward" in _row(looped, 1)
    assert "all_reduce #1 of 3 float32" in _row(looped, 0), "what the other one waits in"
    for hang in (stopped, looped):
        folder = (command.folder / hang.report).parent
        assert {path.name for path in folder.iterdir()} >= {
            "report.txt",
            "report.json",
            "rank-0.stacks.txt",
            "rank-1.stacks.txt",
            "rank-0.collectives.json",
        }
        assert hang.seconds is not None
    failures = [one for one in events if isinstance(one, AttemptFailed)]
    assert [(one.then, one.ranks) for one in failures] == [("retry", (1,))] * 2
    (slow,) = [one for one in events if isinstance(one, Straggler)]
    assert (slow.rank, slow.part) == (1, "forward")
    assert command.metrics()[-1]["step"] == 80


def _row(hang: Hang, rank: int) -> str:
    return next(line for line in hang.table.splitlines() if line.startswith(f"{rank}  "))
