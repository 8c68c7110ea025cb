"""What ends a run from outside, on real Ray workers: signals, `kill -9`, another process, a full disk."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from shardyard.launch.describe import describe
from shardyard.tracking.run.events import event_of
from support.cli import COMMAND, Command, write_recipe
from support.tiny import write_corpus
from support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stops")
    more = {"evaluate": {"every": 1000}, "checkpoint": {"every": 20}}
    return write_recipe(folder, write_corpus(folder), cluster={"workers": 1}, train={"steps": 4000}, **more)


def test_ctrl_c_while_it_imports_what_it_trains_with(recipe: Path, tmp_path: Path) -> None:
    """Python tells on stderr what it has imported, which by then goes to the log of the driver."""
    said, told = tmp_path / "said", ("sh", "-c", f'PYTHONPROFILEIMPORTTIME=1 exec "$@" 2> {tmp_path / "said"}', "sh")
    with Command("launch", recipe, "--local", runs=tmp_path / "runs", prefix=told) as command:
        command.wait_for(lambda: [log for log in command.runs.glob("*/logs/driver.log") if "torch" in log.read_text()])
        command.interrupt()
        code, output = command.finish()
    assert code == 130, output
    assert "Stopping before the first step" in output
    assert "Traceback" not in output + said.read_text()
    assert command.info()["state"] == "interrupted"
    assert command.metrics() == []


def workers(command: Command) -> list[psutil.Process]:
    return [process for process in command.descendants() if "RankWorker" in " ".join(process.cmdline())]


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_what_schedulers_and_people_do_to_a_run(recipe: Path, tmp_path: Path) -> None:
    """One run from its start to its end, through everything that may happen to it."""
    runs = tmp_path / "runs"
    _a_stop_while_it_starts(recipe, runs)
    _sigterm_to_every_process(runs)
    _closed_terminal(runs)
    with Command("resume", "latest", runs=runs) as suspended:
        _killed_rank(suspended)
        _one_holder(suspended)
        _taken_over(suspended)


def _a_stop_while_it_starts(recipe: Path, runs: Path) -> None:
    with Command("launch", recipe, runs=runs) as command:
        command.wait_for(lambda: list(runs.glob("*/run.json")) and command.info()["state"] == "running")
        command.process.send_signal(signal.SIGTERM)
        code, output = command.finish()
    assert code == 143, output
    assert "SIGTERM received: stopping before the first step" in output
    assert command.info()["state"] == "preempted"
    assert command.metrics() == [], "it does not train on"


def _sigterm_to_every_process(runs: Path) -> None:
    """As `timeout` does with a process group, and systemd and Slurm with all processes of a job."""
    with Command("resume", "latest", runs=runs) as command:
        command.wait_for_step(3)
        started = command.descendants()
        os.killpg(command.process.pid, signal.SIGTERM)
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        code, output = command.finish()
        assert code == 143, output
        assert "SIGTERM received: stopping after this step, with a checkpoint" in output
        until(lambda: not alive(started), lambda: f"gone: {alive(started)}")
    assert command.info()["state"] == "preempted"
    last = command.metrics()[-1]["step"]
    assert (command.folder / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()


# Gives a command a terminal of its own, and closes it at SIGUSR1; ends as the command does.
TERMINAL = """
import os, pty, signal, sys

class Closed(Exception): pass

def close(number, frame):
    raise Closed

signal.signal(signal.SIGUSR1, close)
# What the tests are started from may have it ignored, as nohup does.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
child, terminal = pty.fork()
if child == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
try:
    while os.read(terminal, 65536):
        pass
except (Closed, OSError):
    os.close(terminal)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def _closed_terminal(runs: Path) -> None:
    with Command("resume", "latest", runs=runs, prefix=(sys.executable, "-c", TERMINAL)) as command:
        begun = len(command.metrics())
        command.wait_for(lambda: len(command.metrics()) > begun)
        command.process.send_signal(signal.SIGUSR1)
        code, output = command.finish()
    assert code == 130, output
    assert command.info()["state"] == "interrupted"
    last = command.metrics()[-1]["step"]
    assert (command.folder / "checkpoints" / f"step-{last:08d}" / "manifest.json").exists()


def _killed_rank(command: Command) -> None:
    """What is told of a rank that `kill -9` ended: signal, host, what it said last, and how often that may happen."""
    begun = len(command.metrics())
    command.wait_for(lambda: len(command.metrics()) > begun)
    attempts = len(command.events("attempt"))
    [worker] = workers(command)
    worker.kill()
    command.wait_for(lambda: command.events("failure"))
    message = describe(event_of(command.events("failure")[0]))
    assert "SIGKILL" in message
    assert f"(pid {worker.pid} on {socket.gethostname()})" in message
    assert "last lines of rank-0.log:\n    " in message
    assert "(failure 1 of at most 3 without a new checkpoint)" in message
    command.wait_for(lambda: len(command.events("attempt")) > attempts)


def _one_holder(command: Command) -> None:
    with Command("resume", "latest", runs=command.runs) as second:
        code, output = second.finish()
    assert code == 2, output
    assert f"is being trained by process {command.process.pid} on {socket.gethostname()}" in output


def _taken_over(command: Command) -> None:
    """A holder that slept through a take-over ends without touching the run, which another has finished meanwhile."""
    frozen = [psutil.Process(command.process.pid), *command.descendants()]
    for process in frozen:
        process.suspend()
    reached = command.metrics()[-1]["step"]
    take = ("resume", "latest", "--take-over", "--local", "--until", reached + 20)
    with Command(*take, runs=command.runs) as second:
        code, output = second.finish()
    assert code == 0, output
    before, records = command.info(), (command.folder / "metrics.jsonl").read_bytes()
    for process in reversed(frozen):
        process.resume()
    code, output = command.finish()
    assert code == 1, output
    assert "was taken over by process" in output
    assert command.info() == before
    assert (command.folder / "metrics.jsonl").read_bytes() == records
    until(lambda: not alive(frozen), lambda: f"gone: {alive(frozen)}")


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("nsenter"), reason="mounts a small disk of its own")
def test_a_disk_that_is_entirely_full_ends_a_run_with_a_word(recipe: Path, tmp_path: Path) -> None:
    """All output goes to that disk too. Afterwards no list of runs says that it still runs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    listed = " ".join([*COMMAND, "runs", "--runs-dir", str(disk / "runs"), "--json"])
    script = f'mount -t tmpfs -o size=4m tmpfs {disk} && "$@"; echo "code $?"; rm -f {disk}/filler; {listed}'
    short = ("-s", "train.steps=400", "-s", "checkpoint.every=1000")
    prefix = ("unshare", "--mount", "sh", "-c", script, "sh")
    with Command("launch", recipe, *short, runs=disk / "runs", prefix=prefix) as command:
        inside = ["nsenter", "-t", str(command.process.pid), "-m", "sh", "-c"]

        def looks(what: str) -> bool:
            return subprocess.run([*inside, what], check=False, capture_output=True).returncode == 0

        command.wait_for(lambda: looks(f"grep -q train/loss {disk}/runs/*/metrics.jsonl"))
        looks(f"cat /dev/zero > {disk}/filler")
        code, output = command.finish()
    assert code == 0, output
    assert "code 1" in output, output
    assert "Error: " in output
    assert "No space left on device" in output
    assert '"state": "failed"' in output or '"state": "lost"' in output
