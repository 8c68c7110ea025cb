"""`shardyard cluster` on one machine: up, status, down, and what happens when something goes wrong in between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.cli import COMMAND
from support.hosts import RAY, clean_environment
from support.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

UP = ("cluster", "up", "--port", "0", "--dashboard-port", "0", "--cpus", "1")


class Machine:
    """Commands with a SHARDYARD_HOME of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=clean_environment(SHARDYARD_HOME=str(self.home)),
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        out, error = process.communicate(timeout=PATIENCE_SECONDS)
        return subprocess.CompletedProcess(arguments, process.returncode, out, error)

    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads((self.home / "cluster.json").read_text())
        return record

    def wait_for_nodes(self, count: int, process: subprocess.Popen[str]) -> dict[str, Any]:
        """The record, once so many nodes have been started."""

        def started() -> dict[str, Any] | None:
            with contextlib.suppress(OSError, ValueError):
                if len((record := self.record())["nodes"]) >= count:
                    return record
            assert process.poll() is None, process.communicate()
            return None

        found = until(started, f"{count} nodes start", every=0.02)
        assert found
        return found

    def left(self) -> list[str]:
        """What still runs of this home. Children inherit the variable; Ray's workers only hide it while they run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                ours = process.environ().get("SHARDYARD_HOME") == str(self.home)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(process.cmdline())}")
        return found


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A cluster of two nodes with a core each."""
    machine = Machine(tmp_path_factory.mktemp("home"))
    try:
        done = machine.run(*UP, "--nodes", "2")
        assert done.returncode == 0, done.stderr
        for word in ("2 nodes", "shardyard submit", "shardyard cluster down", "export RAY_ADDRESS=127.0.0.1:"):
            assert word in done.stdout, done.stdout
        token = Path(machine.record()["token_path"]).read_text()
        assert token not in done.stdout + done.stderr
        yield machine
    finally:
        machine.run("cluster", "down")


def status(machine: Machine) -> tuple[int, dict[str, Any]]:
    done = machine.run("cluster", "status", "--json")
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def ask(record: dict[str, Any], path: str, token: str | None) -> int:
    """Status of an HTTP request to the dashboard."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(
            urllib.request.Request(record["dashboard"] + path, headers=headers), timeout=PATIENCE_SECONDS
        ) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def sessions(record: dict[str, Any]) -> list[psutil.Process]:
    """Processes of the nodes, by the sessions that they lead."""
    leaders = {node["pid"] for node in record["nodes"]}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getsid(process.pid) in leaders:
                found.append(process)
    return found


def kill_node(record: dict[str, Any], index: int) -> None:
    """As a crash would: the leader of a node and its raylet, without a word."""
    leader = psutil.Process(record["nodes"][index]["pid"])
    raylets = [child for child in leader.children(recursive=True) if "raylet" in child.name()]
    assert raylets
    for process in (leader, *raylets):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def test_it_says_what_it_is(machine: Machine) -> None:
    code, found = status(machine)
    assert code == 0
    assert found["healthy"] is True
    assert [(node["name"], node["state"], node["total"]["CPU"]) for node in found["nodes"]] == [
        ("head", "ALIVE", 1.0),
        ("node-1", "ALIVE", 1.0),
    ]
    assert found["total"]["CPU"] == found["free"]["CPU"] == 2.0
    assert found["jobs"] == []
    assert found["versions"]["ray"]
    plain = machine.run("cluster", "status").stdout
    assert "2 of 2 nodes alive, 2 of 2 CPUs" in plain
    assert "node-1" in plain


def test_only_its_user_can_read_what_it_keeps(machine: Machine) -> None:
    record = machine.record()
    for path in (machine.home / "cluster.json", Path(record["token_path"]), *map(Path, [record["temp_dir"]])):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    token = Path(record["token_path"]).read_text()
    assert token not in (machine.home / "cluster.json").read_text()
    lines = [" ".join(process.cmdline()) for process in sessions(record)]
    assert any("gcs_server" in line for line in lines)
    assert not [line for line in lines if token in line]
    assert machine.run("cluster", "token").stdout.strip() == record["token_path"]


def test_nothing_listens_beyond_loopback(machine: Machine) -> None:
    listening = [
        connection.laddr.ip
        for process in sessions(machine.record())
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) > 10
    assert {address for address in listening if not address.startswith("127.")} <= {"::1", "::ffff:127.0.0.1"}


def test_the_token_is_asked_for(machine: Machine) -> None:
    record = machine.record()
    assert ask(record, "/api/jobs/", None) == 401
    assert ask(record, "/api/jobs/", "0" * 64) == 403
    assert ask(record, "/api/jobs/", Path(record["token_path"]).read_text()) == 200


def ray_status(environment: dict[str, str]) -> str:
    """What Ray's own command says."""
    done = subprocess.run(
        [RAY, "status"], env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    return done.stdout + done.stderr


def test_the_printed_environment_is_what_the_commands_of_ray_need(machine: Machine) -> None:
    record = machine.record()
    known = {
        "RAY_ADDRESS": record["gcs"],
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": record["token_path"],
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    done = subprocess.run(
        [RAY, "job", "list"],
        env=clean_environment(**known),
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The autoscaler hears of nodes some seconds after they have started.
    until(lambda: "/2.0 CPU" in ray_status(clean_environment(**known)), "Ray's status counts both nodes")
    stranger = clean_environment(**known | {"RAY_AUTH_MODE": "disabled"})
    refused = subprocess.run(
        [RAY, "status"], env=stranger, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert refused.returncode != 0
    assert "CPU" not in refused.stdout, refused.stdout


def test_a_second_one_and_busy_ports_are_refused(machine: Machine, tmp_path: Path) -> None:
    done = machine.run(*UP)
    assert done.returncode == 2
    assert "is up already" in done.stderr
    assert machine.run("cluster", "token", "--new").returncode == 2
    elsewhere = Machine(tmp_path)
    port = machine.record()["gcs"].rpartition(":")[2]
    done = elsewhere.run("cluster", "up", "--port", port, "--dashboard-port", "0")
    assert done.returncode == 2
    assert f"--port {port} of 127.0.0.1 is in use by gcs_server" in done.stderr, done.stderr
    assert not (elsewhere.home / "cluster.json").exists()
    assert elsewhere.run("cluster", "down").stdout.strip() == "No cluster is up."


def test_a_start_that_fails_or_is_interrupted_leaves_nothing(machine: Machine, tmp_path: Path) -> None:
    other = Machine(tmp_path)
    starting = other.start(*UP, "--nodes", "2")
    record = other.wait_for_nodes(2, starting)
    os.kill(record["nodes"][1]["pid"], signal.SIGKILL)
    out, error = starting.communicate(timeout=PATIENCE_SECONDS)
    assert starting.returncode == 1, out + error
    assert "node-1 ended while" in error
    assert "Traceback" not in error
    assert other.left() == []
    assert not (other.home / "cluster.json").exists()
    assert not Path(record["temp_dir"]).exists()

    starting = other.start(*UP)
    record = other.wait_for_nodes(1, starting)
    os.killpg(starting.pid, signal.SIGINT)
    starting.communicate(timeout=PATIENCE_SECONDS)
    assert starting.returncode == 130
    assert other.left() == []
    assert not (other.home / "cluster.json").exists()
    # The cluster next door never noticed.
    assert all(psutil.pid_exists(node["pid"]) for node in machine.record()["nodes"])


def test_a_dead_node_is_told_and_a_dead_head_can_be_cleared_away(machine: Machine) -> None:
    record = machine.record()
    kill_node(record, 1)
    code, found = status(machine)
    assert code == 1
    assert any("node-1 is dead" in problem for problem in found["problems"])
    assert {node["name"]: node["state"] for node in found["nodes"]} == {"head": "ALIVE", "node-1": "DEAD"}

    kill_node(record, 0)
    until(lambda: "is dead" in machine.run("cluster", "status").stderr, "the dead head is told")
    done = machine.run("cluster", "down")
    assert done.returncode == 0, done.stderr
    assert machine.left() == []
    assert not Path(record["temp_dir"]).exists()

    port, dashboard = record["gcs"].rpartition(":")[2], record["dashboard"].rpartition(":")[2]
    done = machine.run("cluster", "up", "--port", port, "--dashboard-port", dashboard, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["gcs"] == record["gcs"]
    assert machine.run("cluster", "down").returncode == 0
    assert machine.left() == []
