"""Runs of one rank have no driver that could watch them: a process beside them does, with `--local` and in a sweep.

Trials of several ranks have one.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from shardyard.launch.sweep.folder import list_sweeps
from shardyard.tracking.run.events import Hang, read_events
from shardyard.tracking.run.folder import RunFolder
from support.cli import Command, write_recipe
from support.hold import held_by
from support.tiny import write_corpus
from support.waiting import until

pytestmark = pytest.mark.slow

HELD, STEPS = 8, 12


def recipe_in(folder: Path, workers: int = 1) -> Path:
    """A tiny recipe, held at a step while `folder`/held says so."""
    (folder / "held").write_text(str(HELD))
    cluster: dict[str, Any] = {"workers": workers, "watchdog": {"hang_seconds": 1.0}}
    return write_recipe(
        folder,
        write_corpus(folder),
        cluster=cluster,
        train={"steps": STEPS},
        zero={"stage": 1},
        evaluate={"every": 4, "rows": 8},
        checkpoint={"every": 4},
        sample={"prompts": []},
        hooks=held_by(folder / "held"),
    )


def hangs(run: RunFolder) -> list[Hang]:
    return [one for one in read_events(run.events) if isinstance(one, Hang)]


def beside(pid: int) -> list[str]:
    """Processes that watch this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line, parent = (path / "cmdline").read_text(), (path / "stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if "tracking.watch.beside" in line and int(parent) == pid:
            found.append(path.name)
    return found


def test_a_local_run_that_is_stopped_is_told_and_ended_and_goes_on(tmp_path: Path) -> None:
    recipe = recipe_in(tmp_path)
    with Command("launch", recipe, "--local", runs=tmp_path / "runs") as command:
        command.wait_for_step(HELD - 1)
        command.wait_for(lambda: beside(command.process.pid))
        (watcher,) = beside(command.process.pid)
        os.kill(command.process.pid, signal.SIGSTOP)
        code, output = command.finish()
    assert code == -signal.SIGKILL
    assert "the run hangs: no progress for" in output
    assert "rank 0 is stopped by a signal (SIGSTOP)" in output
    run = RunFolder(command.folder)
    assert f"shardyard resume {run.path}" in output
    (hang,) = hangs(run)
    assert (hang.ranks, hang.report) == ((0,), f"hangs/attempt-001-step-{HELD:08d}/report.txt")
    assert "hold.py" in hang.table, "the innermost line of the training thread"
    until(lambda: not Path(f"/proc/{watcher}").exists(), "the watcher ends with the rank")
    (tmp_path / "held").unlink()
    with Command("resume", run.path, runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    assert command.metrics()[-1]["step"] == STEPS
    assert hangs(run) == [hang]


def sweep_in(folder: Path, rates: list[float]) -> Path:
    """A sweep of the recipe there, one trial at a time."""
    path = folder / "sweep.yaml"
    parameters = {"optimizer.lr": {"values": rates}}
    with path.open("w") as file:
        YAML(typ="safe").dump({"name": "hung", "recipe": "tiny.yaml", "parallel": 1, "parameters": parameters}, file)
    return path


def first_run(runs: Path) -> RunFolder | None:
    """The run of the first trial once it has a checkpoint."""
    found = [folder.run_of(0) for folder in list_sweeps(runs)]
    run = found[0] if found else None
    return run if run is not None and (run.checkpoints / "step-00000004").exists() else None


@pytest.mark.cluster
def test_a_trial_that_is_stopped_is_ended_and_the_sweep_goes_on(tmp_path: Path) -> None:
    recipe_in(tmp_path)
    path, runs = sweep_in(tmp_path, [3e-3, 1e-3]), tmp_path / "runs"
    with Command("sweep", path, runs=runs) as command:
        command.wait_for(lambda: first_run(runs))
        run = first_run(runs)
        assert run is not None
        pid = run.info().raw["driver"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        command.wait_for(lambda: hangs(run))
        (tmp_path / "held").unlink()
        code, output = command.finish()
    assert code == 0, output
    assert "trial 000  failed: the run hangs: no progress for" in output
    (sweep,) = list_sweeps(runs)
    assert [trial.state for trial in sweep.trials()][1] == "finished"
    with Command("sweep", "resume", "latest", runs=runs) as command:
        code, output = command.finish()
    assert code == 0, output
    assert {trial.state for trial in list_sweeps(runs)[0].trials()} == {"finished"}


@pytest.mark.cluster
def test_a_trial_of_several_ranks_one_of_which_is_stopped_goes_on_by_itself(tmp_path: Path) -> None:
    recipe_in(tmp_path, workers=2)
    path, runs = sweep_in(tmp_path, [3e-3]), tmp_path / "runs"
    with Command("sweep", path, runs=runs) as command:
        command.wait_for(lambda: first_run(runs))
        run = first_run(runs)
        assert run is not None
        placement: Any = run.info().raw["placement"]
        os.kill(placement[0]["pids"][1], signal.SIGSTOP)
        command.wait_for(lambda: hangs(run))
        (tmp_path / "held").unlink()
        code, output = command.finish()
    assert code == 0, output
    (hang,) = hangs(run)
    assert hang.ranks == (1,)
    assert "rank 1 is stopped by a signal (SIGSTOP)" in hang.text
    assert run.info().attempts == 2
    assert {trial.state for trial in list_sweeps(runs)[0].trials()} == {"finished"}
