"""The process beside a rank of its own: it reports a hang, ends the rank unless a person may be looking, and goes."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import psutil
import pytest

from shardyard.tracking.run.events import Event, Hang, read_events
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.watch.beat import Handle
from shardyard.tracking.watch.beside import Watch, watch
from shardyard.tracking.watch.judge import Limits
from support.reliability.watched import ranks
from support.waiting import until

LIMITS = Limits(hang=1.0)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "tiny", "name: tiny", "name: tiny")


def test_what_to_watch_is_one_line() -> None:
    wanted = Watch("/runs/a b", 7, "here", Handle(3, 4, 5, 6), LIMITS, ends=False, kept="it is asked to")
    assert Watch.from_json(wanted.to_json()) == wanted
    assert "\n" not in wanted.to_json()


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [False, True])
def test_a_rank_that_hangs_is_told_and_ended(stopped: bool, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    asks, end = os.pipe()
    with ranks(1) as ((pid, handle),), os.fdopen(asks) as never:
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        watch(Watch(str(run.path), pid, "here", handle, LIMITS, ends=True), never)
        assert psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    os.close(end)
    (hang,) = read_events(run.events)
    assert isinstance(hang, Hang)
    why = "rank 0 is stopped by a signal (SIGSTOP)" if stopped else "rank 0 made no progress in forward"
    assert (hang.ranks, why in hang.text) == ((0,), True)
    assert "<string>" in hang.table
    told = capsys.readouterr().err
    assert why in told
    assert f"shardyard resume {run.path}" in told
    assert (run.path / hang.report).read_text() == hang.table


@pytest.mark.slow
def test_a_rank_that_somebody_looks_at_is_left_alone(run: RunFolder) -> None:
    asks, end = os.pipe()
    with ranks(1) as ((pid, handle),), os.fdopen(asks) as closed:
        wanted = Watch(str(run.path), pid, "here", handle, LIMITS, ends=False, kept="a debugger is attached")
        beside = threading.Thread(target=watch, args=(wanted, closed))
        beside.start()

        def told() -> list[Event]:
            return read_events(run.events)

        until(told, "it is told")
        os.close(end)
        beside.join()
        assert psutil.Process(pid).is_running()
        assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    (hang,) = told()
    assert isinstance(hang, Hang)
    assert "Done: nothing, because a debugger is attached." in hang.table
