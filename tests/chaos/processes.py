"""Faults of the processes around the ranks: driver, raylet, head; signals to all; two resumes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil

from chaos.cell import Cell, Outcome, Where, finish, outcome, told
from chaos.trial import EVERY, Fault, Measured, Trial, trial
from support.waiting import until

# A scheduler's time between SIGTERM and SIGKILL.
GRACE_SECONDS = 30.0
ROOT = Path(__file__).parents[2]
# Tests in which a scheduler or a person sends SIGTERM.
TESTS = {
    "sweep": "e2e/test_sweep.py::test_optuna_goes_on_after_sigterm",
    "slurm": "e2e/test_slurm.py::test_requeue_and_time_limit_end_in_checkpoints",
}


def named(one: Trial, what: str) -> list[psutil.Process]:
    """Processes of the box whose program has this name."""
    return [process for process in one.box.processes() if any(what in part for part in process.cmdline()[:1])]


def _working(one: Trial) -> list[str]:
    """What should not outlive a driver. Two idle agents of Ray do, for a minute or until the next command."""
    found = []
    for process in one.box.processes():
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return [line for line in found if line and not line.startswith(("ray::DashboardAgent", "ray::RuntimeEnvAgent"))]


def _kill(what: str, where: Where) -> Outcome:
    """Kill a process while rank 0 stands in a step, and see how long others of the run outlive it."""
    reference = where.reference()
    with trial(where.cell) as one:
        ended = -1.0
        with one.held("launch", one.recipe) as command:
            victims = [psutil.Process(command.process.pid)] if what == "driver" else named(one, what)
            assert victims, f"no {what}"
            one.note_fault()
            began = time.time()
            for victim in victims:
                victim.kill()
            if what == "driver":
                until(lambda: not _working(one), lambda: f"all end: {one.box.left_over()}", seconds=60)
                ended = time.time() - began
            else:
                (one.box.folder / "marks" / "held.go").touch()
                command.finish()
                ended = time.time() - began
        one.faults = []
        found = outcome(one, finish(one, one.code), reference)
        note = f"the command and its processes ended after {ended:.1f} s"
        return Outcome(**{**vars(found), "told": f"{note}; {found.told}", "detected": found.detected or ended})


def _kill_beside_a_save(where: Where) -> Outcome:
    """Kill the driver while rank 1 writes a checkpoint in the background: what is half there is never taken."""
    reference = where.reference()
    with trial(where.cell, checkpoint={"background": True}) as one:
        # Where it would create its file of step 20; training goes on.
        one.faults = [Fault("save:open", "hold", step=2 * EVERY, name="held")]
        with one.start("launch", one.recipe) as command:
            command.wait_for((one.box.folder / "marks" / "held.0").exists)
            command.wait_for_step(2 * EVERY + 2)
            one.note_fault()
            began = time.time()
            command.process.kill()
            until(lambda: not _working(one), lambda: f"all end: {one.box.left_over()}", seconds=60)
            ended = time.time() - began
        there = sorted(path.name for path in (one.folder / "checkpoints").iterdir())
        one.faults = []
        found = outcome(one, finish(one, 1), reference)
        half = there == [f".step-{2 * EVERY:08d}.partial", f"step-{EVERY:08d}"]
        note = f"all processes ended after {ended:.1f} s, leaving {', '.join(there)}"
        return Outcome(**{**vars(found), "told": note, "detected": ended, "good": found.good and half})


def _terminated(everyone: bool, where: Where) -> Outcome:
    """SIGTERM as schedulers send it; what runs after 30 s would be killed."""
    reference = where.reference()
    with trial(where.cell) as one:
        with one.held("launch", one.recipe) as command:
            one.note_fault()
            began = time.time()
            if everyone:
                for process in one.box.processes():
                    process.send_signal(signal.SIGTERM)
            else:
                os.kill(command.process.pid, signal.SIGTERM)
        took = time.time() - began
        saved = max((path.name for path in (one.folder / "checkpoints").glob("step-*")), default="")
        one.faults = []
        code = one.code
        found = outcome(one, finish(one, code), reference, Measured(detected=took))
        good = found.good and code == 143 and saved in ("step-00000025", "step-00000026") and took < GRACE_SECONDS
        return Outcome(**{**vars(found), "told": f"{took:.1f} s to {saved}; {told(one)}", "good": good})


def _two_resumes(where: Where) -> Outcome:
    """Two commands resume one run at the same moment: one trains, the other is refused with a word."""
    reference = where.reference()
    with trial(where.cell) as one:
        one.pause()
        with one.start("resume", "latest") as first, one.start("resume", "latest") as other:
            ends = [first.finish(), other.finish()]
        one.output += [text for _, text in ends]
        codes = sorted(code for code, _ in ends)
        found = outcome(one, "one trained, one was refused" if codes == [0, 2] else f"codes {codes}", reference)
        return Outcome(**{**vars(found), "good": found.good and codes == [0, 2]})


def _by_test(test: str, where: Where) -> Outcome:
    """What a test of the suite asserts: it starts the scheduler, which then sends its signals."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/{test}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    passed = done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout
    return Outcome(
        "as the test asserts" if passed else "the test fails", "" if passed else done.stdout[-200:], good=passed
    )


def cells() -> list[Cell]:
    """All of them."""
    outside = "kill -9 while rank 0 stands in step 25"
    return [
        Cell("driver", "processes around the ranks", "the driver dies", outside, partial(_kill, "driver")),
        Cell(
            "driver-beside-save",
            "processes around the ranks",
            "the driver dies while a checkpoint is written beside training",
            "kill -9 in step 22, while rank 1 is to create its file of step 20",
            _kill_beside_a_save,
        ),
        Cell("raylet", "processes around the ranks", "the raylet dies", outside, partial(_kill, "raylet/raylet")),
        Cell("head", "processes around the ranks", "the head (gcs_server) dies", outside, partial(_kill, "gcs_server")),
        Cell(
            "sigterm-launch",
            "schedulers",
            "SIGTERM with 30 s under `launch`",
            "to the command, in step 25",
            partial(_terminated, False),
        ),
        Cell(
            "sigterm-all",
            "schedulers",
            "SIGTERM with 30 s to every process",
            "to all processes of the run, in step 25",
            partial(_terminated, True),
        ),
        *(
            Cell(
                f"sigterm-{name}", "schedulers", f"SIGTERM with 30 s under {name}", f"`{test}`", partial(_by_test, test)
            )
            for name, test in TESTS.items()
        ),
        Cell("two-resumes", "processes around the ranks", "two resumes at once", "two commands at once", _two_resumes),
    ]
