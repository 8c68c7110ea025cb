"""`shardyard watch` and the curves in text: in a terminal, in a pipe, with Ctrl-C, and of runs that end."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.main import run as command
from shardyard.cli.view.plot import bars, plot
from support import waiting
from support.dash_cases import add_lines, write_run
from support.waiting import PATIENCE_SECONDS

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_every_point_of_a_plot_has_its_dot() -> None:
    points = [(float(step), 100.0 if step == 5000 else 1.0) for step in range(10_000)]
    lines = plot(points, 60, 8)
    assert len(lines) == 8
    assert lines[0].startswith("  100│")
    # A spike of one point is the only thing in the upper line, in its middle.
    drawn = lines[0].partition("│")[2]
    assert len(drawn.strip()) == 1
    assert abs(len(drawn) - 28) <= 2
    assert lines[-2].startswith("    1│⣀")
    assert lines[-1].split() == ["0", "9,999"]
    assert max(map(len, lines)) <= 60


def test_a_plot_leaves_out_what_is_not_finite() -> None:
    assert plot([], 60, 8) == []
    assert plot([(1.0, float("nan"))], 60, 8) == []
    lines = plot([(1.0, float("inf")), (2.0, 3.0), (3.0, 3.0)], 40, 5)
    assert lines[-1].split() == ["2", "3"]
    assert all(
        ord(character) < 128 for line in plot([(1.0, 1.0), (2.0, 2.0)], 40, 5, ascii_only=True) for character in line
    )


def test_a_logarithmic_axis() -> None:
    points = [(float(step), 10.0**-step) for step in range(5)]
    straight = plot(points, 40, 11, log=True)
    assert straight[5].lstrip().startswith("0.01│")
    # Values that are not positive have no logarithm: the axis is linear then.
    assert plot([(0.0, 0.0), (1.0, 1.0)], 40, 5, log=True) == plot([(0.0, 0.0), (1.0, 1.0)], 40, 5)


def test_bars() -> None:
    assert bars([1.0, 2.0, 3.0], 10) == "▁▄█"
    assert bars([1.0, None, float("nan"), 3.0], 4) == "▁  █"
    assert bars([], 10) == bars([float("nan")], 10) == ""
    assert bars([1.0] * 100, 5, ascii_only=True) == "....."


def follow(runs: Path, *arguments: str, environment: dict[str, str] | None = None) -> tuple[Any, int]:
    """`shardyard watch` in a terminal of 100 columns; the process, and the other end of its terminal."""
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    size = {"COLUMNS": "100", "LINES": "40", "TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"}
    process = subprocess.Popen(
        [sys.executable, "-m", "shardyard.cli.main", "watch", *arguments, "--runs-dir", str(runs)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, **size, **(environment or {})},
        start_new_session=True,
    )
    os.close(theirs)
    return process, ours


def read_until(terminal: int, text: str) -> str:
    """What the terminal showed, without escapes, up to the appearance of a text."""
    shown = _ESCAPES.sub("", waiting.read_until(terminal, lambda seen: text in _ESCAPES.sub("", seen)))
    assert text in shown, shown[-3000:]
    return shown


def live_run(runs: Path) -> Path:
    """A run that this process drives."""
    driver = {"host": os.uname().nodename, "pid": os.getpid(), "pid_namespace": os.readlink("/proc/self/ns/pid")}
    folder = write_run(runs, "live-1", state="running", losses=[3.0, 2.5], driver=driver)
    with (folder / "events.jsonl").open("w") as file:
        file.write(json.dumps({"kind": "attempt", "number": 1, "time": 1001.0, "world_size": 2}) + "\n")
    return folder


def end(folder: Path, state: str) -> None:
    info = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**info, "state": state}))


@pytest.mark.slow
def test_a_live_run_is_followed_to_its_end(tmp_path: Path) -> None:
    folder = live_run(tmp_path)
    process, terminal = follow(tmp_path)
    try:
        shown = read_until(terminal, "step 2/100")
        assert "live-1: running" in shown
        add_lines(folder, [1.25], first=3)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"step": 3, "time": 1003.5, "eval/validation/loss": 1.75}) + "\n")
            file.write(json.dumps({"step": 3, "time": 1003.6, "memory/rss_bytes": 2**30}) + "\n")
        with (folder / "events.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "checkpoint", "step": 3, "time": 1004.0}) + "\n")
        shown = read_until(terminal, "checkpoint at step 3")
        assert "evaluation at step 3: loss 1.7500" in shown
        assert "1.2500" in shown
        assert "1.0 GiB" in shown
        assert any(0x2800 < ord(character) < 0x2900 for character in shown), "a plot of dots"
        end(folder, "failed")
        read_until(terminal, "live-1: failed")
        assert process.wait(PATIENCE_SECONDS) == 1
    finally:
        process.kill()
        process.wait()
        os.close(terminal)


def test_ctrl_c_leaves_the_run_to_itself(tmp_path: Path) -> None:
    folder = live_run(tmp_path)
    process, terminal = follow(tmp_path, "live-1")
    try:
        read_until(terminal, "step 2/100")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 130
        rest = waiting.read_until(terminal, lambda seen: False)
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert json.loads((folder / "run.json").read_text())["state"] == "running"
    assert not (folder / "stop.json").exists()


def test_plain_lines_in_a_pipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "done-1", losses=[3.0] * 9 + [1.0])
    assert command(["watch", "done-1", "--runs-dir", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "done-1: 100 steps"
    assert [line.split()[:2] for line in lines if line.lstrip().startswith("10/100")] == [["10/100", "1.0000"]]
    assert lines[-1] == "done-1: finished"
    assert not any("\x1b" in line or "│" in line for line in lines)


@pytest.mark.parametrize(("state", "code"), [("finished", 0), ("failed", 1), ("interrupted", 130), ("preempted", 143)])
def test_the_exit_code_is_that_of_the_run(tmp_path: Path, state: str, code: int) -> None:
    write_run(tmp_path, "done-1", state=state)
    assert command(["watch", "done-1", "--runs-dir", str(tmp_path)]) == code


def test_a_look_at_another_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "done-1")
    assert command(["watch", "--once", "-m", "train/tokens", "--runs-dir", str(tmp_path)]) == 0
    assert "train/tokens" in capsys.readouterr().out
    assert command(["watch", "--once", "-m", "train/los", "--runs-dir", str(tmp_path)]) == 2
    assert "it has train/loss, train/tokens" in capsys.readouterr().err
    assert command(["watch", "nothing", "--runs-dir", str(tmp_path)]) == 2


def test_lists_and_comparisons_have_curves_in_a_terminal_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one-1", "two-1"):
        write_run(tmp_path, name, losses=[3.0, 2.0, 1.0])
    commands = (["runs"], ["runs", "one-1"], ["compare", "one-1", "two-1"])
    for arguments in commands:
        assert command([*arguments, "--runs-dir", str(tmp_path)]) == 0
        assert "█" not in capsys.readouterr().out
    monkeypatch.setattr("shardyard.cli.view.output.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "160")
    told = []
    for arguments in commands:
        assert command([*arguments, "--runs-dir", str(tmp_path)]) == 0
        told.append(capsys.readouterr().out)
    assert told[0].count("█▄▁") == 2
    assert any(0x2800 < ord(character) < 0x2900 for character in told[1])
    assert told[2].count("█▄▁") == 2
