"""What is told of a restart, and the folders of local Rays. `e2e/test_worker_group.py` has spare processes on Ray."""

from __future__ import annotations

import fcntl
import signal
import subprocess
from pathlib import Path

from shardyard.engine.hooks.base import NullEventLog
from shardyard.engine.hooks.recovery import RecoveryHook, phases_of
from shardyard.engine.job import Restart
from shardyard.launch.describe import describe
from shardyard.launch.ray import sessions
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.run.events import Event, Recovered, event_of, line_of
from support.waiting import until

# What Ray's agents are to others: a process that they have renamed, with a log in the folder.
AGENT = 'exec -a ray::DashboardAgent sleep 1000 > "$0"'


class Events(NullEventLog):
    def __init__(self) -> None:
        self.found: list[Event] = []

    def event(self, event: Event) -> None:
        self.found.append(event)


def test_phases_are_the_times_between_what_was_reached() -> None:
    times = {"last_step": 10.0, "failed": 12.0, "ended": 12.5, "placed": 14.0, "imported": 13.0, "joined": 13.5}
    # The clock of another host is a second behind.
    assert phases_of(times) == {"noticed": 2.0, "ended": 0.5, "processes": 1.5, "imports": 0.0, "process_group": 0.5}


def test_the_first_step_after_a_failure_is_told_once_with_its_phases() -> None:
    now, log = iter([20.0, 26.0]), Events()
    restart = Restart({"last_step": 10.0, "failed": 11.0, "joined": 18.0}, spares=True)
    hook = RecoveryHook(restart, lambda: 24.0, log, lambda: next(now))
    assert hook.due(31, 40)
    hook.on_step(StepRecord(31, {}))
    assert not hook.due(32, 40)
    (event,) = log.found
    phases = {"noticed": 1.0, "process_group": 7.0, "model": 2.0, "checkpoint": 4.0, "first_step": 2.0}
    assert event == Recovered(step=31, seconds=16.0, phases=phases, spares=True)
    assert event_of(line_of(event)).to_fields() == event.to_fields()
    assert describe(event) == (
        "recovered by spare processes: step 31 after 16.0 s (noticed 1.0 s, process group 7.0 s, model 2.0 s, "
        "checkpoint 4.0 s, first step 2.0 s)"
    )
    assert describe(Recovered(step=31)) == "recovered: step 31 after 0 ms"


def test_only_folders_of_rays_whose_driver_has_ended_are_removed(tmp_path: Path) -> None:
    ours, alive, dead, foreign = (tmp_path / f"session_{name}" for name in ("ours", "alive", "dead", "foreign"))
    for folder in (ours, alive, dead, foreign):
        folder.mkdir()
        (folder / "gcs.log").touch()
    for folder in (alive, dead):
        (folder / sessions.MARK).touch()
    latest = tmp_path / "session_latest"
    latest.symlink_to(dead)
    sessions.mark(ours)
    agents = [subprocess.Popen(["bash", "-c", AGENT, folder / "agent.log"]) for folder in (alive, dead)]
    try:
        until(lambda: all((folder / "agent.log").exists() for folder in (alive, dead)), "they write")
        with (alive / sessions.MARK).open("r+") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            sessions.remove_dead(tmp_path)
        assert agents[1].wait(60) == -signal.SIGKILL
        assert agents[0].poll() is None
    finally:
        for agent in agents:
            agent.kill()
            agent.wait()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["session_alive", "session_foreign", "session_ours"]
    latest.symlink_to(ours)
    sessions.remove(foreign)
    sessions.remove(ours)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["session_alive", "session_foreign"]
