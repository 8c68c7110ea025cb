"""Faults between hosts: a node that dies, a link that is down, packets that vanish, both ways or one way."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from chaos.box import INJECT, Box
from chaos.cell import Cell, Outcome, Where, told
from chaos.trial import AT, EVERY, STEPS, Fault, State, Trial
from support.cli import write_recipe
from support.hosts import Host, hosts
from support.tiny import write_corpus
from support.waiting import until

# Collectives wait so long for a rank that does not answer.
TIMEOUT_SECONDS = 15
NOBODY = "02:00:00:00:00:99"
ENTRY = "shardyard.launch.jobs.entry"
DRIVER, HEAD, DASHBOARD = "shardyard.launch.jobs.driver", "gcs_server", "dashboard/dashboard.py"
# A scheduler's time between SIGTERM and SIGKILL.
GRACE_SECONDS = 30.0
# Names of the processes of a run.
OF_A_RUN = (DRIVER, "RankWorker")


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


@dataclass(frozen=True)
class Job:
    """A submitted job whose rank 0 stands in step 25, with a rank on each of two hosts. Each has room for both."""

    alpha: Host
    beta: Host
    one: Trial

    def go_on(self) -> None:
        """Let rank 0 go on."""
        (self.one.box.folder / "marks" / "held.go").touch()

    def of(self, host: Host, *names: str) -> list[psutil.Process]:
        """Processes of a host with one of these names in their command lines."""
        found = []
        for process in host.processes():
            with contextlib.suppress(psutil.Error):
                if any(name in " ".join(process.cmdline()) for name in names):
                    found.append(process)
        return found

    def as_client(self) -> dict[str, str]:
        """The environment that `cluster up` tells people to set."""
        record = self.alpha.record()
        return {
            "RAY_ADDRESS": record["gcs"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": record["token_path"],
        }

    def resume(self, **variables: str) -> str:
        """Resume the run by one command on the first host; how it went on."""
        done = self.alpha.shardyard("resume", "latest", "--runs-dir", self.one.runs, timeout=400, **variables)
        if done.returncode != 0:
            return f"not at all: {(done.stdout + done.stderr).strip()[-200:]}"
        return "ended; `resume` 1×"


@contextmanager
def _job(folder: Path) -> Iterator[Job]:
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
        one = Trial(Box(folder, os.getpid()), recipe)
        done = alpha.shardyard("submit", recipe, "--name", "hurt", "-q", "--runs-dir", one.runs)
        assert done.returncode == 0, done.stdout + done.stderr
        until((folder / "marks" / "held.0").exists, "rank 0 stands in step 25")
        assert len(one.lines_of_info()["placement"]) == 2, "a rank on each host"
        yield Job(alpha, beta, one)


def _ended(job: Job, went_on: str, reference: State, said: str) -> Outcome:
    """The outcome, and what outlives `cluster down`."""
    failed = went_on.startswith("not at all")
    differs = "not finished" if failed else job.one.state().differs(reference)
    measured = job.one.measured()
    for host in (job.alpha, job.beta):
        host.shardyard("cluster", "down")
    left = left_on(job.alpha, job.beta)
    return Outcome(
        went_on,
        differs or "bitwise",
        measured.detected,
        measured.next_step,
        measured.lost,
        left,
        said,
        good=not differs and not left,
    )


def _between(hurt: Callable[[Host, Host], None], where: Where) -> Outcome:
    """The fault strikes while rank 0 stands; the job goes on by itself, on the first host."""
    reference = where.reference()
    with _job(where.cell) as job:
        job.one.note_fault()
        hurt(job.alpha, job.beta)
        job.go_on()
        done = job.alpha.shardyard("wait", "hurt", timeout=400)
        went_on = "by itself" if done.returncode == 0 else f"not at all: code {done.returncode}: {done.stdout[-200:]}"
        return _ended(job, went_on, reference, told(job.one))


def _cut_off(name: str, where: Where) -> Outcome:
    """The driver of a submitted job, or the head of its cluster, dies; ranks must end, and one command goes on."""
    reference = where.reference()
    with _job(where.cell) as job:
        victims = job.of(job.alpha, name)
        assert victims, f"no {name}"
        job.one.note_fault()
        began = time.monotonic()
        for victim in victims:
            victim.kill()
        job.go_on()
        until(
            lambda: not [one for host in (job.alpha, job.beta) for one in job.of(host, *OF_A_RUN)],
            lambda: f"ranks and driver end: {[job.of(host, *OF_A_RUN) for host in (job.alpha, job.beta)]}",
            seconds=120,
        )
        seconds = time.monotonic() - began
        said = job.alpha.shardyard("wait", "hurt", timeout=120)
        if name in (HEAD, DASHBOARD):
            # A person starts the cluster anew; here one host is enough.
            for host in (job.beta, job.alpha):
                host.shardyard("cluster", "down")
            variables: dict[str, str] = {}
        else:
            variables = job.as_client()
        went_on = job.resume(CHAOS_LOG=str(where.cell / "log"), PYTHONPATH=str(INJECT), **variables)
        last = (said.stdout + said.stderr).strip().splitlines()[-1:]
        text = f"ranks and driver ended after {seconds:.1f} s; `wait`: code {said.returncode}, {''.join(last)[:120]}"
        found = _ended(job, went_on, reference, text)
        return Outcome(**{**vars(found), "detected": seconds})


def _terminated(where: Where) -> Outcome:
    """SIGTERM to a submitted job, as schedulers send it; what runs after 30 s would be killed."""
    reference = where.reference()
    with _job(where.cell) as job:
        victims = job.of(job.alpha, ENTRY)
        assert victims, "no entry point"
        job.one.note_fault()
        began = time.monotonic()
        for victim in victims:
            victim.terminate()
        job.go_on()
        hosts_of_job = (job.alpha, job.beta)
        until(
            lambda: not [one for host in hosts_of_job for one in job.of(host, ENTRY, *OF_A_RUN)],
            "the job ends",
            seconds=120,
        )
        seconds = time.monotonic() - began
        saved = max((path.name for path in (job.one.folder / "checkpoints").glob("step-*")), default="")
        said = job.alpha.shardyard("wait", "hurt", timeout=120)
        went_on = job.resume(CHAOS_LOG=str(where.cell / "log"), PYTHONPATH=str(INJECT), **job.as_client())
        text = f"{seconds:.1f} s to {saved}; `wait`: code {said.returncode}"
        found = _ended(job, went_on, reference, text)
        # Some steps are done before the ranks know; none of them is lost.
        good = found.good and found.lost == 0 and saved >= "step-00000025" and seconds < GRACE_SECONDS
        return Outcome(**{**vars(found), "detected": seconds, "good": good})


def left_on(*made: Host, but: Sequence[str] = ()) -> list[str]:
    """Processes that outlive `cluster down` on a host, but those of the test."""

    def found() -> list[str]:
        lines = [(host.name, one.cmdline()) for host in made for one in host.processes()]
        return [f"{name}: {' '.join(line)[:60]}" for name, line in lines if not (line and line[0] in but)]

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
    around = "processes around the ranks"
    killed = "kill -9 on the head's host, in step 25 of a submitted job"
    return [
        *(
            Cell(name, "nodes and networks", fault, f"{how}, in step 25 of a submitted job", partial(_between, hurt))
            for name, (fault, how, hurt) in faults.items()
        ),
        Cell("submit-driver", around, "the driver of a submitted job dies", killed, partial(_cut_off, DRIVER)),
        Cell("cluster-head", around, "the head of a cluster dies", killed, partial(_cut_off, HEAD)),
        Cell(
            "sigterm-submit",
            "schedulers",
            "SIGTERM with 30 s under `submit`",
            "to the entry point of a submitted job, in step 25",
            _terminated,
        ),
        # `ray start --block` ends its node when any of its daemons dies.
        Cell("dashboard", around, "the dashboard of a cluster dies", killed, partial(_cut_off, DASHBOARD)),
    ]
