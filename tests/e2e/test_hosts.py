"""A cluster of two hosts, each with an address of its own: joining, strangers, jobs, and the death of a host."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.tracking.run.folder import read_metrics
from support import stranger
from support.cli import write_recipe
from support.hosts import RAY, Host, Listener, hosts
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

# A job of Ray alone: a worker process on each node, so that their ports are among those that are tried.
GUESTS = """
import pathlib, sys, time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
flag = pathlib.Path(sys.argv[1])
ray.init()
@ray.remote(num_cpus=0)
class Guest:
    def here(self):
        return True
guests = [Guest.options(scheduling_strategy=On(node["NodeID"], soft=False)).remote() for node in ray.nodes()]
ray.get([guest.here.remote() for guest in guests])
flag.touch()
while flag.exists():
    time.sleep(0.1)
"""
# Makes the cluster say that it runs another version of Ray, as a cluster of that version would.
ANOTHER_VERSION = """
import json, sys
from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY as KEY
from ray._private.ray_constants import KV_NAMESPACE_CLUSTER as SPACE
from ray._raylet import GcsClient
client = GcsClient(address=sys.argv[1])
metadata = json.loads(client.internal_kv_get(KEY, namespace=SPACE))
metadata["ray_version"] = sys.argv[2]
client.internal_kv_put(KEY, json.dumps(metadata).encode(), overwrite=True, namespace=SPACE)
"""


class Pair:
    """Two hosts with two cores each, a third one beside them, and storage that all see."""

    def __init__(self, alpha: Host, beta: Host, outside: Host, shared: Path) -> None:
        self.alpha, self.beta, self.outside = alpha, beta, outside
        self.runs = shared / "runs"
        self.corpus = write_corpus(shared)
        self.shared = shared

    def as_client(self) -> dict[str, str]:
        """The environment that `up` tells people to set."""
        record = self.alpha.record()
        return {
            "RAY_ADDRESS": record["gcs"],
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": record["token_path"],
        }

    def submit(self, name: str, steps: int, **cluster: Any) -> str:
        """Submit a tiny recipe; returns the job."""
        recipe = write_recipe(
            self.shared,
            self.corpus,
            train={"steps": steps},
            checkpoint={"every": 20, "keep": 2},
            evaluate={"every": steps},
            cluster={"workers": 2, **cluster},
        )
        done = self.alpha.shardyard("submit", recipe, "--name", name, "-q", "--runs-dir", self.runs)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()

    def steps(self, job: str) -> list[int]:
        """Steps that the run of a job has recorded."""
        path = self.runs / job / "metrics.jsonl"
        return [line["step"] for line in read_metrics(path)] if path.exists() else []

    def info(self, job: str) -> dict[str, Any]:
        """run.json of a job; empty before there is one."""
        path = self.runs / job / "run.json"
        info: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        return info

    def ask(self, *arguments: object) -> tuple[int, str]:
        """Exit code and output of a command on the first host."""
        done = self.alpha.shardyard(*arguments, timeout=PATIENCE_SECONDS)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The first host is up, the second has not joined."""
    folder = tmp_path_factory.mktemp("hosts")
    with hosts(folder, "alpha", "beta", "outside") as (alpha, beta, outside):
        done = alpha.shardyard("cluster", "up", "--host", alpha.address, "--cpus", 2)
        assert done.returncode == 0, done.stderr
        assert f"shardyard cluster join {alpha.address}:6379" in done.stdout
        try:
            yield Pair(alpha, beta, outside, folder)
        finally:
            for host in (beta, alpha):
                host.shardyard("cluster", "down")


@pytest.fixture(scope="module")
def pair(alone: Pair) -> Pair:
    """Both hosts are one cluster."""
    shutil.copy(alone.alpha.record()["token_path"], alone.beta.home / "token")
    done = alone.beta.shardyard("cluster", "join", f"{alone.alpha.address}:6379", "--cpus", 2)
    assert done.returncode == 0, done.stderr
    return alone


def join_fails(pair: Pair, address: str) -> str:
    """What a join that cannot work says; nothing of it stays."""
    done = pair.beta.shardyard("cluster", "join", address)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert pair.beta.processes() == []
    assert not (pair.beta.home / "cluster.json").exists()
    return done.stderr


def test_a_host_that_does_not_belong_is_told_why(alone: Pair) -> None:
    address = f"{alone.alpha.address}:6379"
    assert "cannot be reached: Connection refused" in join_fails(alone, f"{alone.alpha.address}:1")
    # The first join made a token of its own.
    assert f"refuses the token in {alone.beta.home / 'token'}" in join_fails(alone, address)
    shutil.copy(alone.alpha.record()["token_path"], alone.beta.home / "token")
    ours = alone.alpha.record()["ray"]
    try:
        pretend(alone, "2.51.0")
        assert f"runs Ray 2.51.0 and Python {alone.alpha.record()['python']}" in join_fails(alone, address)
    finally:
        pretend(alone, ours)


def pretend(pair: Pair, version: str) -> None:
    gcs = pair.alpha.record()["gcs"]
    done = pair.alpha.run(sys.executable, "-c", ANOTHER_VERSION, gcs, version, **pair.as_client())
    assert done.returncode == 0, done.stderr


def test_both_hosts_are_one_cluster(pair: Pair) -> None:
    for host in (pair.alpha, pair.beta):
        done = host.shardyard("cluster", "status", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert {node["address"] for node in found["nodes"]} == {pair.alpha.address, pair.beta.address}
        assert found["total"]["CPU"] == 4.0
        assert found["dashboard"] == f"http://{pair.alpha.address}:8265"


def test_strangers_get_nothing_from_any_port(pair: Pair) -> None:
    record = pair.alpha.record()
    script, flag, targets = (pair.shared / name for name in ("guests.py", "guests-are-here", "targets.json"))
    script.write_text(GUESTS)
    started = pair.alpha.run(
        *(RAY, "job", "submit", "--no-wait", "--", sys.executable, script, flag), **pair.as_client()
    )
    assert started.returncode == 0, started.stderr
    until(flag.exists, "the guests come")
    listeners = {(host.address, one.port): one for host in (pair.alpha, pair.beta) for one in reachable(host)}
    assert not [kind for kind in KINDS if not any(kind in one.title for one in listeners.values())]
    targets.write_text(json.dumps(list(listeners)))
    try:
        done = pair.outside.run(sys.executable, stranger.__file__, targets)
    finally:
        flag.unlink()
    assert done.returncode == 0, done.stderr
    # Stays in the folder of the test, for whoever wants to read all answers.
    (pair.shared / "answers.json").write_text(done.stdout)
    reports = json.loads(done.stdout)
    assert len(reports) == len(listeners)
    complaints = [
        f"{report['address']}:{report['port']} ({listeners[report['address'], report['port']].title}): {complaint}"
        for report in reports
        for complaint in too_much(report)
    ]
    assert not complaints, "\n".join(complaints)
    # The head still stands, nothing was submitted, and the token opens what was closed.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": record["token_path"]}
    jobs = pair.outside.run(RAY, "job", "list", "--address", record["dashboard"], **token)
    assert jobs.returncode == 0, jobs.stderr
    assert "guests.py" in jobs.stdout
    assert stranger.TRACE not in jobs.stdout
    assert pair.outside.shardyard("ps", "--address", record["dashboard"], **token).returncode == 0
    assert pair.alpha.shardyard("cluster", "status").returncode == 0


KINDS = (
    *("gcs_server", "raylet/raylet", "dashboard/dashboard.py", "ray.util.client.server"),
    *("ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::Guest"),
)
# What Ray answers to anyone: whether the process lives, and the names of its services.
OPEN = {"grpc.health.v1.Health/Check", "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"}
REFUSALS = ("UNAUTHENTICATED", "UNIMPLEMENTED")


def reachable(host: Host) -> list[Listener]:
    """What a host offers to others."""
    loopback = ("127.", "0:0:0:0:0:0:0:1")
    return [one for one in host.listeners() if not one.address.startswith(loopback)]


def too_much(report: dict[str, Any]) -> Iterator[str]:
    """Everything in an answer that goes beyond a refusal."""
    plain = report["plain"]
    # Nothing, an HTTP error, or the settings that gRPC greets with (a frame of type 4).
    if not (plain.startswith("nothing") or not plain or plain[6:8] == "04" or bytes.fromhex(plain)[:5] == b"HTTP/"):
        yield f"says {bytes.fromhex(plain)!r}"
    for way in ("http", "http with a wrong token"):
        for request, status in report[way].items():
            if request != "no HTTP" and status not in (401, 403):
                yield f"{way}: {request} answers {status}"
    for way in ("grpc", "grpc with a wrong token"):
        for method, code in report[way].items():
            if code not in REFUSALS and method not in OPEN:
                yield f"{way}: {method} answers {code}"
    if "no HTTP" in report["http"] and "UNAUTHENTICATED" not in report["grpc"].values():
        yield f"neither speaks HTTP nor refuses a call of gRPC: {report['plain']}"


def test_jobs_on_two_hosts(pair: Pair) -> None:
    """Two ranks on a host each, and beside them a job that waits until it is stopped: it wants all cores."""
    first = pair.submit("first", 300, placement="strict_spread", workers_per_node=1)
    second = pair.submit("second", 5000, workers=4)
    until(lambda: len(pair.steps(first)) > 2, f"{first} trains")
    ranks = {host.name: [line for line in titles(host) if "RankWorker" in line] for host in (pair.alpha, pair.beta)}
    assert {name: len(found) for name, found in ranks.items()} == {"alpha": 1, "beta": 1}
    code, listed = pair.ask("ps", "--all")
    jobs = pair.alpha.run(RAY, "job", "list", **pair.as_client())
    assert code == jobs.returncode == 0
    for job in (first, second):
        assert job in listed
        assert job in jobs.stdout
    until(lambda: pair.info(second).get("waiting") or pair.steps(second), f"{second} waits")
    assert pair.ask("stop", second)[0] == 0
    code, log = pair.ask("logs", "-f", first)
    assert code == 0, log
    assert "loss" in log
    assert pair.ask("wait", first)[0] == 0
    assert pair.steps(first) == list(range(1, 301))
    code, said = pair.ask("wait", second)
    assert code == 130, said
    assert max(pair.steps(second), default=0) < 5000


def titles(host: Host) -> list[str]:
    found = []
    for process in host.processes():
        with contextlib.suppress(psutil.Error):
            found.append(" ".join(process.cmdline()))
    return found


def test_a_run_outlives_a_host(pair: Pair) -> None:
    """Last, because the second host stays dead."""
    job = pair.submit("survivor", 300, placement="spread")
    until(lambda: len(pair.steps(job)) > 45, f"{job} trains")
    assert any("RankWorker" in line for line in titles(pair.beta))
    for process in pair.beta.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    code, said = pair.ask("wait", job)
    assert code == 0, said + pair.ask("logs", job)[1]
    assert pair.info(job)["state"] == "finished"
    assert pair.info(job)["attempts"] >= 2
    assert sorted(set(pair.steps(job))) == list(range(1, 301))
    code, said = pair.ask("cluster", "status")
    assert code == 0
    assert "DEAD" in said
    # What is left of the second host is cleared away; the first one, and only that, ends with its own command.
    assert pair.beta.shardyard("cluster", "down").returncode == 0
    assert any("gcs_server" in line for line in titles(pair.alpha))
    assert pair.ask("cluster", "down")[0] == 0
    assert pair.alpha.processes() == []
