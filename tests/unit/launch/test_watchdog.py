"""What the watchdog makes of looks over time."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from shardyard.launch.ray.places import Member
from shardyard.launch.ray.watchdog import RanksHungError, Watchdog
from shardyard.recipe.schema import Watchdog as Settings
from shardyard.tracking.run.events import Hang, read_events
from shardyard.tracking.watch import report
from shardyard.tracking.watch.history import GAP_SECONDS, History
from shardyard.tracking.watch.look import Look
from support.reliability.watched import ranks
from support.waiting import until

LOOK = Look(0, 7, "h", "S", phase="forward", age_seconds=100.0)


def test_a_driver_that_stood_still_blames_nobody_for_it() -> None:
    history = History(0.0)
    history.add([LOOK], 50.0)
    history.add([LOOK], 51.0)
    assert history.watched(51.0)[0].look.age_seconds == 51.0, "nothing from before the watch counts"
    history.add([LOOK], 60.0 + GAP_SECONDS)
    assert history.watched(60.0 + GAP_SECONDS)[0].look.age_seconds == 0.0


def test_a_node_that_does_not_answer_is_not_judged() -> None:
    history = History(0.0)
    history.add([LOOK, replace(LOOK, rank=1)], 1.0)
    for second in range(2, 10):
        history.add([LOOK], float(second))
    assert [one.look.rank for one in history.watched(9.0)] == [0]


def test_ranks_at_work_are_not_idle() -> None:
    history = History(0.0)
    for second in range(1, 5):
        looks = [
            replace(LOOK, rank=0, cpu_seconds=0.9 * second),
            replace(LOOK, rank=1, io_bytes=5_000_000 * second),
            replace(LOOK, rank=2, beats=second),
            replace(LOOK, rank=3),
        ]
        history.add(looks, float(second))
    assert [one.idle_seconds for one in history.watched(4.0)] == [0.0, 0.0, 0.0, 3.0]


def ended(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


class Run:
    """As much of a run folder as the watchdog needs."""

    def __init__(self, path: Path) -> None:
        self.path, self.events = path, path / "events.jsonl"

    def info(self) -> Any:
        return SimpleNamespace(attempts=2)


def watching(run: Run, found: Any, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Watchdog:
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    watchdog = Watchdog(Settings(hang_seconds=1.0, **settings), run, 1800.0)  # type: ignore[arg-type]
    watchdog.begin([Member("n", "127.0.0.1", "here", pid, (), 1, beat=handle) for pid, handle in found])
    return watchdog


def polled(watchdog: Watchdog) -> RanksHungError | None:
    try:
        watchdog.poll()
    except RanksHungError as error:
        return error
    return None


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_ranks_that_hang_are_told_and_ended(stopped: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(tmp_path)
    with ranks(0, 1) as found:
        if stopped:
            os.kill(found[1][0], signal.SIGSTOP)
        watchdog = watching(run, found, monkeypatch)
        error = until(lambda: polled(watchdog), "it is noticed")
        assert error is not None
        until(lambda: all(ended(pid) for pid, _ in found), "all have ended, the stopped one too")
    assert error.ranks == (1,)
    why = "stopped by a signal" if stopped else "did not come to all_reduce #2 of 24 float32 of group world"
    assert why in error.message
    (hang,) = read_events(run.events)
    assert isinstance(hang, Hang)
    assert (hang.ranks, hang.step) == ((1,), 8)
    newest = report.newest(tmp_path)
    assert newest is not None
    path, text = newest
    assert path == tmp_path / hang.report
    assert text == hang.table
    assert "<string>" in text
    assert " spin\n" in text or " told\n" in text
    assert {one.name for one in path.parent.glob("rank-*")} == {"rank-0.stacks.txt", "rank-1.stacks.txt"}


@pytest.mark.slow
def test_a_recipe_may_ask_for_a_report_alone_or_for_no_watching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    with ranks(0, 1) as found:
        watchdog = watching(run, found, monkeypatch, hangs="report")

        def told() -> list[Any]:
            assert polled(watchdog) is None
            return read_events(run.events)

        until(told, "it is told")
        assert len(told()) == 1, "once"
        assert not any(ended(pid) for pid, _ in found)
        off = watching(run, found, monkeypatch, hangs="off")
        off.poll()
        off.close()
