"""Runs on a cluster of two nodes that others use too: waiting, placement, fractions of GPUs, and nodes that go away.

Both nodes are raylets of this machine. The second offers a GPU that is not there: Ray takes its word for it, and ranks
compute on the CPU where DS_ACCELERATOR says so.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.launch.describe import describe
from shardyard.tracking.run.events import event_of
from support.cli import Command, write_recipe
from support.cluster import RAY, ray_head, wait_until_started
from support.hold import SLOW
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ON_CPU = ("-s", "cluster.gpus_per_worker=0")


@dataclass
class Nodes:
    """environment: of a client; second: the process that leads the second node."""

    environment: dict[str, str]
    second: subprocess.Popen[bytes]


@contextmanager
def ray_node(environment: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Two cores and a GPU that is not there, beside the head."""
    where = ["--block", f"--address={environment['RAY_ADDRESS']}", "--node-ip-address=127.0.0.1"]
    ports = ["--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"]
    command = [RAY, "start", *where, *ports, "--num-cpus=2", "--num-gpus=1", "--disable-usage-stats"]
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with (folder / "node.log").open("w") as log:
        process = subprocess.Popen(
            command, env={**inherited, **environment}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            wait_until_started(process, folder / "node.log")
            yield process
        finally:
            end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a node with everything that it started, as a power cut does."""
    found = []
    if process.poll() is None:
        found = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for one in found:
        if one.is_running():
            one.kill()
    process.wait(timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    with ExitStack() as stack:
        # This process has asked DeepSpeed for the CPU, which nodes and commands are not to inherit.
        stack.enter_context(pytest.MonkeyPatch.context()).delenv("DS_ACCELERATOR", raising=False)
        # Ray would wait half a minute for running work when its head is ended.
        environment = stack.enter_context(ray_head(folder))
        second = stack.enter_context(ray_node(environment, folder))
        yield Nodes(environment, second)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


def launch(nodes: Nodes, recipe: Path, runs: Path, *options: str, **environment: str) -> Command:
    return Command("launch", recipe, *options, runs=runs, **{**nodes.environment, **environment})


def ranks_of(command: Command) -> list[list[int]]:
    return [place["ranks"] for place in command.info()["placement"]]


def test_a_run_waits_for_resources_and_says_for_what(nodes: Nodes, corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, corpus, train={"steps": 100000}, cluster={"placement": "spread"})
    (tmp_path / "shared").mkdir()
    shared = write_recipe(tmp_path / "shared", corpus, train={"steps": 10}, cluster={"gpus_per_worker": 0.5})
    with launch(nodes, recipe, tmp_path / "first", *ON_CPU, "-s", SLOW) as first:
        first.wait_for_step(2)
        assert ranks_of(first) == [[0], [1]]
        (told,) = first.events("placement")
        assert "2 ranks on 2 nodes" in describe(event_of(told))
        with launch(nodes, shared, tmp_path / "second", DS_ACCELERATOR="cpu") as second:
            second.wait_for(lambda: list(second.runs.glob("*/events.jsonl")) and second.events("waiting"))
            (waiting,) = second.events("waiting")
            assert second.info()["waiting"] == waiting["wait"]
            assert (waiting["wait"]["reason"], waiting["wait"]["shortage"]["workers_held"]) == ("placement", 1)
            assert describe(event_of(waiting)).startswith(
                "waiting for resources: needs 1 GPU on 1 node; 1 free, but they hold 1 of 2"
            )
            assert second.info()["attempts"] == 0
            first.interrupt()
            assert first.finish()[0] == 130
            code, output = second.finish()
    assert code == 0, output
    assert "waiting for resources" in output
    # Half a GPU each: both ranks share the one that there is, on one node.
    assert ranks_of(second) == [[0, 1]]
    assert second.info()["placement"][0]["gpus"] == [["0"], ["0"]]
    assert second.info()["waiting"] is None
    (settings,) = second.info()["network"].values()
    assert any(setting.startswith("GLOO_SOCKET_IFNAME=lo") for setting in settings)


def test_what_never_fits_is_refused_at_once(nodes: Nodes, corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, corpus, cluster={"placement": "strict_pack"})
    with launch(nodes, recipe, tmp_path / "runs", "-s", "cluster.workers=4", *ON_CPU) as command:
        code, output = command.finish()
    assert code == 1, output
    assert "cannot hold this run: it needs 4 CPU cores on 1 node; 4 in the cluster, but they hold 2 of 4" in output
    assert "Traceback" not in output
    assert command.info()["state"] == "failed"


def test_a_gpu_that_torch_cannot_use_fails_once_and_clearly(nodes: Nodes, corpus: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, corpus, cluster={"workers": 1, "gpus_per_worker": 1})
    with launch(nodes, recipe, tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 1, output
    assert "Ray offers GPUs on " in output
    assert "Traceback" not in output
    assert command.info()["attempts"] == 1


def test_a_rank_that_hangs_and_a_node_that_dies_cost_an_attempt_each(
    nodes: Nodes, corpus: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path,
        corpus,
        train={"steps": 600},
        checkpoint={"every": 20},
        evaluate={"every": 600},
        cluster={"placement": "spread", "watchdog": {"hang_seconds": 5.0}},
    )
    with launch(nodes, recipe, tmp_path / "runs", *ON_CPU) as command:
        command.wait_for_step(25)
        # A stopped process answers nobody, and collectives wait for minutes: the watchdog of its node ends the attempt.
        os.kill(process_of(command, rank=1), signal.SIGSTOP)
        command.wait_for(lambda: command.events("failure"))
        (failure,) = command.events("failure")
        assert failure["ranks"] == [1]
        command.wait_for(lambda: len(command.events("attempt")) == 2)
        assert ranks_of(command) == [[0], [1]]
        reached = max(line["step"] for line in command.metrics())
        command.wait_for_step(reached + 5)
        end(nodes.second)
        code, output = command.finish()
    assert code == 0, output
    assert command.info()["state"] == "finished"
    assert ranks_of(command) == [[0, 1]], "the node that is left holds both ranks"
    steps = [line["step"] for line in command.metrics()]
    assert steps == list(range(1, 601))


def process_of(command: Command, rank: int) -> int:
    found: dict[int, Any] = {}
    for place in command.info()["placement"]:
        found.update(zip(place["ranks"], place["pids"], strict=True))
    return int(found[rank])
