"""Faults between hosts: a node that dies, a link that is down, packets that vanish, both ways or one way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial

import psutil

from chaos.box import INJECT, Box
from chaos.cell import Cell, Outcome, Where
from chaos.trial import AT, EVERY, STEPS, Fault, Trial
from support.cli import write_recipe
from support.hosts import Host, hosts
from support.tiny import write_corpus
from support.waiting import until

# Collectives wait so long for a rank that does not answer.
TIMEOUT_SECONDS = 15
NOBODY = "02:00:00:00:00:99"


def _kill(alpha: Host, beta: Host) -> None:
    for process in beta.processes():
        with contextlib.suppress(psutil.Error):
            process.kill()


def _unplug(alpha: Host, beta: Host) -> None:
    subprocess.run(["ip", "-n", beta.namespace, "link", "set", "eth0", "down"], check=True)


def _lose(sender: Host, receiver: Host) -> None:
    """What the sender sends to the receiver reaches nobody."""
    entry = ["neigh", "replace", receiver.address, "lladdr", NOBODY, "dev", "eth0", "nud", "permanent"]
    subprocess.run(["ip", "-n", sender.namespace, *entry], check=True)


def _black_hole(alpha: Host, beta: Host) -> None:
    _lose(alpha, beta)
    _lose(beta, alpha)


def _one_way(alpha: Host, beta: Host) -> None:
    _lose(beta, alpha)


def _between(hurt: Callable[[Host, Host], None], where: Where) -> Outcome:
    """Two hosts with a rank each; the fault strikes in step 25. Then the first host has room for both ranks."""
    reference = where.reference()
    folder = where.cell
    for name in ("marks", "log", "tmp", "ray"):
        (folder / name).mkdir(parents=True)
    settings = {
        "train": {"steps": STEPS},
        "checkpoint": {"every": EVERY, "keep": 4},
        "evaluate": {"every": STEPS},
        "sample": {"prompts": []},
        "cluster": {"workers": 2, "placement": "spread", "network": {"timeout": TIMEOUT_SECONDS}},
    }
    recipe = write_recipe(folder, write_corpus(folder), **settings)
    hold = Fault("forward", "hold", rank=0, step=AT, name="held").as_json(folder)
    variables = {
        "PYTHONPATH": str(INJECT),
        "CHAOS_LOG": str(folder / "log"),
        "CHAOS_FAULTS": json.dumps([hold]),
        "OMP_NUM_THREADS": "1",
    }
    with hosts(folder, "alpha", "beta") as (alpha, beta):
        done = alpha.shardyard("cluster", "up", "--host", alpha.address, "--cpus", 2, **variables)
        assert done.returncode == 0, done.stderr
        shutil.copy(alpha.record()["token_path"], beta.home / "token")
        done = beta.shardyard("cluster", "join", f"{alpha.address}:6379", "--cpus", 2, **variables)
        assert done.returncode == 0, done.stderr
        runs = folder / "runs"
        done = alpha.shardyard("submit", recipe, "--name", "hurt", "-q", "--runs-dir", runs)
        assert done.returncode == 0, done.stdout + done.stderr
        until((folder / "marks" / "held.0").exists, "rank 0 stands in step 25")
        one = Trial(Box(folder, os.getpid()), recipe)
        assert len(one.lines_of_info()["placement"]) == 2, "a rank on each host"
        one.note_fault()
        hurt(alpha, beta)
        (folder / "marks" / "held.go").touch()
        done = alpha.shardyard("wait", "hurt", timeout=400)
        measured = one.measured()
        differs = (
            one.state().differs(reference) if done.returncode == 0 else f"code {done.returncode}: {done.stdout[-200:]}"
        )
        for host in (alpha, beta):
            host.shardyard("cluster", "down")
        left = _left(alpha, beta)
    return Outcome(
        "by itself" if done.returncode == 0 else "not at all",
        differs or "bitwise",
        measured.detected,
        measured.next_step,
        measured.lost,
        left,
        good=not differs and not left,
    )


def _left(*made: Host) -> list[str]:
    """Processes that outlive `cluster down` on a host."""

    def found() -> list[str]:
        return [f"{host.name}: {' '.join(one.cmdline())[:60]}" for host in made for one in host.processes()]

    with contextlib.suppress(AssertionError, psutil.Error):
        until(lambda: not found(), "nothing is left", seconds=10)
    return found()


def cells() -> list[Cell]:
    """All of them."""
    faults = {
        "node": ("a node dies", "all processes of a host (network namespace) are killed", _kill),
        "link-down": ("the link of a host is down", "`ip link set eth0 down`", _unplug),
        "black-hole": ("packets between hosts vanish", "both hosts send to an address that nobody has", _black_hole),
        "one-way": ("packets vanish one way", "one host sends to an address that nobody has", _one_way),
    }
    return [
        Cell(name, "nodes and networks", fault, f"{how}, in step 25 of a submitted job", partial(_between, hurt))
        for name, (fault, how, hurt) in faults.items()
    ]
