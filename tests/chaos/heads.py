"""A head that dies and comes back: the state of its cluster lies in a Redis on a host of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from chaos.box import INJECT, Box
from chaos.cell import Cell, Outcome, Where
from chaos.network import left_on
from chaos.trial import AT, EVERY, STEPS, Fault, Trial
from support.cli import COMMAND, write_recipe
from support.hosts import Host, hosts
from support.tiny import write_corpus
from support.waiting import until

# Rank 0 stands here while the head comes back.
LATER = 35


@contextmanager
def _redis(host: Host) -> Iterator[str]:
    """The address of a Redis that keeps nothing on disk."""
    options = ["--bind", host.address, "--protected-mode", "no", "--save", "", "--appendonly", "no"]
    process = host.start("redis-server", *options)
    try:
        until(lambda: host.run("redis-cli", "-h", host.address, "ping").stdout.strip() == "PONG", "Redis answers")
        yield f"{host.address}:6379"
    finally:
        process.terminate()
        process.communicate()


def _sees_itself(host: Host) -> tuple[str, ...]:
    """What commands begin with that see no processes of other hosts: a driver looks for its node among all it sees."""
    host.start("unshare", "--mount", "--pid", "--fork", "--mount-proc", "sleep", "infinity")

    def sleeping() -> list[psutil.Process]:
        return [process for process in host.processes() if process.cmdline()[:1] == ["sleep"]]

    (keeper,) = until(sleeping, "the host has its own table of processes")
    return ("nsenter", "-t", str(keeper.pid), "--mount", "--pid", "--")


def _recipe(folder: Path) -> Path:
    for name in ("marks", "log", "tmp", "ray"):
        (folder / name).mkdir(parents=True)
    return write_recipe(
        folder,
        write_corpus(folder),
        train={"steps": STEPS},
        checkpoint={"every": EVERY, "keep": 4},
        evaluate={"every": STEPS},
        sample={"prompts": []},
        cluster={"workers": 2},
    )


def _comes_back(where: Where) -> Outcome:
    """The head's host dies in step 25; ranks train on to step 35 without it, and end once it is back."""
    assert shutil.which("redis-server"), "redis-server is not installed: `apt install redis-server`"
    reference, folder = where.reference(), where.cell
    recipe = _recipe(folder)
    one = Trial(Box(folder, os.getpid()), recipe)
    holds = [Fault("forward", "hold", rank=0, step=step, name=f"held-{step}") for step in (AT, LATER)]
    chaos = {
        "PYTHONPATH": str(INJECT),
        "CHAOS_LOG": str(folder / "log"),
        "CHAOS_FAULTS": json.dumps([hold.as_json(folder) for hold in holds]),
        "OMP_NUM_THREADS": "1",
    }
    marks = folder / "marks"
    with hosts(folder, "alpha", "beta", "gamma") as (alpha, beta, gamma), _redis(gamma) as address:
        state = {"RAY_REDIS_ADDRESS": address, "RAY_external_storage_namespace": "chaos"}
        up = ("cluster", "up", "--host", alpha.address, "--cpus", 1)
        done = alpha.shardyard(*up, **state)
        assert done.returncode == 0, done.stderr
        shutil.copy(alpha.record()["token_path"], beta.home / "token")
        alone = _sees_itself(beta)
        done = beta.run(*alone, *COMMAND, "cluster", "join", f"{alpha.address}:6379", "--cpus", 2, **chaos)
        assert done.returncode == 0, done.stderr
        client = {
            "RAY_ADDRESS": f"{alpha.address}:6379",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(beta.home / "token"),
        }
        launch = beta.start(*alone, *COMMAND, "launch", recipe, "-q", "--runs-dir", one.runs, **client, **chaos)
        try:
            until(lambda: (marks / f"held-{AT}.0").exists() or launch.poll() is not None, "rank 0 stands in step 25")
            assert launch.poll() is None, "".join(launch.communicate())
            assert len(one.lines_of_info()["placement"]) == 1, "no rank is on the head's host, which has room for one"
            one.note_fault()
            for process in alpha.processes():
                with contextlib.suppress(psutil.Error):
                    process.kill()
            until(lambda: not alpha.processes(), "the head is dead")
            (marks / f"held-{AT}.go").touch()
            until((marks / f"held-{LATER}.0").exists, "ranks train on without a head", seconds=60)
            began = time.monotonic()
            done = alpha.shardyard(*up, **state)
            assert done.returncode == 0, done.stdout + done.stderr
            seconds = time.monotonic() - began
            (marks / f"held-{LATER}.go").touch()
            out, error = launch.communicate(timeout=300)
        except subprocess.TimeoutExpired:
            launch.kill()
            out, error = launch.communicate()
        finally:
            launch.kill()
        attempts = [line for line in one.lines("events.jsonl") if line["kind"] == "attempt"]
        by_itself = launch.returncode == 0 and len(attempts) == 1
        went_on = "by itself" if by_itself else f"not at all: code {launch.returncode}: {(out + error)[-300:]}"
        differs = one.state().differs(reference) if by_itself else "not finished"
        beta.run(*alone, *COMMAND, "cluster", "down")
        alpha.shardyard("cluster", "down")
        left = [*left_on(alpha), *left_on(beta, but=("sleep", "unshare"))]
    text = f"ranks trained on without a head to step {LATER}; the head was back after {seconds:.0f} s"
    good = by_itself and not differs and not left
    return Outcome(went_on, differs or "bitwise", lost=0, left=left, told=text, good=good)


def cells() -> list[Cell]:
    """All of them."""
    return [
        Cell(
            "cluster-head-redis",
            "processes around the ranks",
            "the head of a cluster dies and comes back",
            "kill -9 of all on its host in step 25, its state in a Redis elsewhere; `cluster up` in step 35",
            _comes_back,
        )
    ]
