"""Ctrl-C and SIGTERM at every moment of a command that trains, without training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shardyard.cli.first import is_command
from shardyard.errors import TrainingError
from shardyard.launch.run.signals import StopSignals, stoppable
from shardyard.tracking.files import JsonlWriter
from shardyard.tracking.run.folder import RunFolder
from support.cli import COMMAND

BOTH = pytest.mark.parametrize(
    ("number", "code", "state", "reason"),
    [
        (signal.SIGINT, 130, "interrupted", "interrupt"),
        (signal.SIGHUP, 130, "interrupted", "interrupt"),
        (signal.SIGTERM, 143, "preempted", "preempt"),
    ],
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "tiny", "a", "b", total_steps=10)


@pytest.fixture(autouse=True)
def no_nohup() -> Iterator[None]:
    """What the tests are started from may have SIGHUP ignored."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_nohup_stays_in_force() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def work(signals: StopSignals) -> int:
        send(signal.SIGHUP)
        return 7

    assert stoppable(work) == 7


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@BOTH
def test_before_there_is_a_run_a_signal_ends_the_command(
    number: int, code: int, state: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(signals: StopSignals) -> int:
        send(number)
        raise AssertionError("it went on")

    before = signal.getsignal(number)
    assert stoppable(work) == code
    assert capsys.readouterr().err == f"{state.capitalize()} before training began.\n"
    assert signal.getsignal(number) is before


@BOTH
def test_a_run_that_does_not_train_yet_is_not_left_pending(
    number: int, code: int, state: str, reason: str, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(signals: StopSignals) -> int:
        with signals.held():
            send(number)
            signals.attach(run)
        raise AssertionError("it went on")

    assert stoppable(work) == code
    assert run.state == state
    assert f"shardyard resume {run.path}" in capsys.readouterr().err


def test_a_run_that_ended_before_keeps_its_state(run: RunFolder) -> None:
    run.update(state="failed")

    def work(signals: StopSignals) -> int:
        signals.attach(run)
        send(signal.SIGINT)
        raise AssertionError("it went on")

    assert stoppable(work) == 130
    assert run.state == "failed"


def test_what_becomes_of_the_exception_of_a_signal_does_not_matter(run: RunFolder) -> None:
    """Raised in the midst of an import, it may come out as an ImportError."""

    def work(signals: StopSignals) -> int:
        signals.attach(run)
        try:
            send(signal.SIGTERM)
        except BaseException as error:
            raise ImportError("half imported") from error
        raise AssertionError("it went on")

    assert stoppable(work) == 143
    assert run.state == "preempted"


def test_an_error_after_the_run_was_made_is_its_failure(run: RunFolder) -> None:
    def work(signals: StopSignals) -> int:
        signals.attach(run)
        raise OSError("no such library")

    with pytest.raises(OSError, match="no such library"):
        stoppable(work)
    assert run.state == "failed"


@BOTH
def test_a_signal_asks_the_run_that_is_driven(number: int, code: int, state: str, reason: str, run: RunFolder) -> None:
    said: list[str] = []

    def work(signals: StopSignals) -> int:
        with signals.driving(run, said.append):
            send(number)
            assert run.stop_requested() == reason
            assert "before the first step" in said.pop()
        return 7

    assert stoppable(work) == 7, "how the run ends is told by who drives it"


def test_what_is_said_follows_from_where_the_run_stands(run: RunFolder) -> None:
    JsonlWriter(run.events).append({"kind": "attempt", "number": 1})  # of an earlier process
    said: list[str] = []

    def work(signals: StopSignals) -> int:
        with signals.driving(run, said.append):
            JsonlWriter(run.events).append({"kind": "attempt", "number": 2})
            send(signal.SIGTERM)
            send(signal.SIGTERM)
        return 0

    stoppable(work)
    assert said == ["SIGTERM received: stopping after this step, with a checkpoint. Ctrl-C ends at once, without one."]


def test_a_signal_just_before_a_run_is_driven_is_not_forgotten(run: RunFolder) -> None:
    def work(signals: StopSignals) -> int:
        signals.first_signal = signal.SIGINT  # came where its exception was lost
        with signals.driving(run, lambda text: None):
            assert run.stop_requested() == "interrupt"
        return 0

    assert stoppable(work) == 0


def test_a_signal_after_the_end_changes_nothing(run: RunFolder) -> None:
    def work(signals: StopSignals) -> int:
        with signals.driving(run, lambda text: None):
            run.update(state="finished")
        send(signal.SIGINT)
        send(signal.SIGTERM)
        return 0

    assert stoppable(work) == 0
    assert run.state == "finished"
    assert run.stop_requested() is None


def test_an_alarm_that_ray_has_set_is_called_off(run: RunFolder) -> None:
    def work(signals: StopSignals) -> int:
        with signals.driving(run, lambda text: None):
            signal.alarm(100)
            send(signal.SIGTERM)
            assert signal.alarm(0) == 0
        return 0

    stoppable(work)


def test_a_run_that_fails_after_it_was_asked_has_failed(run: RunFolder) -> None:
    def work(signals: StopSignals) -> int:
        with signals.driving(run, lambda text: None):
            send(signal.SIGINT)
            raise TrainingError("the loss is nan")

    with pytest.raises(TrainingError):
        stoppable(work)


@pytest.mark.parametrize("moment", ["typer.", "shardyard.cli.view.output", "pydantic"])
def test_ctrl_c_is_quiet_from_the_first_moment(moment: str, tmp_path: Path) -> None:
    """While the command imports: Python tells on stderr what it has imported."""
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "validate", str(tmp_path / "none.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.split("|")[-1].strip().startswith(moment):
            break
    else:
        pytest.fail(f"{moment} is not imported")
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(60) in (130, 2), "2: the command was faster"
    assert "Traceback" not in rest
    assert "KeyboardInterrupt" not in rest


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/usr/bin/shardyard", True),
        ("/site-packages/shardyard/cli/main.py", True),
        ("-c", False),
        ("/usr/bin/pytest", False),
    ],
)
def test_only_the_command_handles_signals_when_it_is_imported(program: str, expected: bool) -> None:
    assert is_command(program) is expected
