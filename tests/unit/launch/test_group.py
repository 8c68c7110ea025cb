"""What ranks are told before they meet: their places, their variables, their device."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.distributed import distributed_c10d

from shardyard import hardware
from shardyard.launch.describe import places_in_words
from shardyard.launch.ray import trainer
from shardyard.launch.ray.group import make_ready, parted_groups, places_of
from shardyard.launch.ray.process_group import rank_environment
from shardyard.launch.ray.trainer import scaling
from shardyard.launch.ray.worker import limit_collectives
from shardyard.launch.run.world import world_of
from shardyard.planning.placement import Amount, Demand, Placement
from shardyard.recipe.schema import Cluster, Network


@dataclass
class Worker:
    """As Ray Train describes it."""

    node: str
    gpus: list[int] = field(default_factory=list)

    @property
    def metadata(self) -> Any:
        return SimpleNamespace(
            node_id=self.node, node_ip=f"10.0.0.{self.node}", hostname="host", pid=7, gpu_ids=self.gpus
        )


def test_places_are_told_node_by_node() -> None:
    places = places_of([Worker("1", [0]), Worker("1", [1]), Worker("2", [0]), Worker("2", [3])])
    assert places_in_words(places) == "4 ranks on 2 nodes: 10.0.0.1 has 0–1, 10.0.0.2 has 2–3"
    assert places[1]["gpus"] == [["0"], ["3"]]
    assert parted_groups(places, 2) == 0
    assert parted_groups(places, 4) == 1
    mixed = places_of([Worker("1"), Worker("2"), Worker("1")])
    assert places_in_words(mixed) == "3 ranks on 2 nodes: 10.0.0.1 has 0, 2, 10.0.0.2 has 1"


def test_ranks_of_a_cpu_run_keep_deepspeed_off_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": "/bin", "NCCL_DEBUG": "WARN"})
    ready = make_ready(Network(), "127.0.0.1", gpu=False, one_host=True, forwarded={})
    assert ready.problem == ""
    assert any(words.startswith("GLOO_SOCKET_IFNAME=lo") for words in ready.settings)
    assert os.environ["DS_ACCELERATOR"] == "cpu"


def test_a_host_that_cannot_take_part_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(hardware, "CHOSEN_ACCELERATOR", None)
    ready = make_ready(Network(interface="nowhere"), "127.0.0.1", gpu=False, one_host=False, forwarded={})
    assert "cluster.network.interface is nowhere, but the host 127.0.0.1 has" in ready.problem
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ready = make_ready(Network(), "127.0.0.1", gpu=True, one_host=True, forwarded={})
    assert "Ray offers GPUs on 127.0.0.1, but torch" in ready.problem
    monkeypatch.setattr(hardware, "CHOSEN_ACCELERATOR", "cpu")
    assert "DS_ACCELERATOR is cpu there" in make_ready(Network(), "::1", gpu=True, one_host=True, forwarded={}).problem


def test_the_variables_of_a_rank_are_those_of_torchrun() -> None:
    assert rank_environment(rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1) == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "1",
        "GROUP_RANK": "1",
    }


def test_later_groups_take_the_time_limit_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """DeepSpeed makes groups of its own without a limit, and all of ZeRO's collectives run in them."""
    for name in ("default_pg_timeout", "default_pg_nccl_timeout"):
        monkeypatch.setattr(distributed_c10d, name, timedelta(seconds=1800))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        limit_collectives(12.5)
        groups = [torch.distributed.group.WORLD, torch.distributed.new_group([0])]
        found = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]  # type: ignore[union-attr]
    finally:
        torch.distributed.destroy_process_group()
    assert found[1] == timedelta(seconds=12.5)


def test_bundles_name_their_nodes_where_there_are_several() -> None:
    demand = Demand(workers=3, bundle=Amount(2.0, 0.5), group=1, strategy="spread", most_per_node=None)
    config = scaling(demand, Placement((("b", 2), ("a", 1))))
    assert config.resources_per_worker == {"CPU": 2.0, "GPU": 0.5}
    assert config.label_selector == [{"ray.io/node-id": node} for node in ("b", "b", "a")]
    assert (config.num_workers, config.use_gpu, config.placement_strategy) == (3, True, "PACK")
    left_to_ray = scaling(demand, Placement(()))
    assert (left_to_ray.label_selector, left_to_ray.placement_strategy) == (None, "SPREAD")


def test_ray_looks_elsewhere_soon_where_places_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    trainer._configure(pinned=True)
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "10"
    trainer._configure(pinned=False)
    assert "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S" not in os.environ
    os.environ |= {"RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "99", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "7"}
    monkeypatch.setattr(trainer, "_START_TIMEOUT_IS_GIVEN", True)
    trainer._configure(pinned=True)
    assert os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] == "99"
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "7"


def test_what_ranks_compute_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "CHOSEN_ACCELERATOR", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert world_of(Cluster(gpus_per_worker=0.5), cluster_gpus=2).gpu
    assert world_of(Cluster(gpus_per_worker=1), cluster_gpus=0).gpu
    assert not world_of(Cluster(gpus_per_worker=0), cluster_gpus=8).gpu
    assert world_of(Cluster(), cluster_gpus=8).gpu
    assert not world_of(Cluster()).gpu
    monkeypatch.setattr(hardware, "CHOSEN_ACCELERATOR", "cpu")
    assert not world_of(Cluster(gpus_per_worker=1), cluster_gpus=8).gpu


_OUTLIVES = """
import os, signal, subprocess, sys
from shardyard.launch.ray.group import outlive_sigterm
if sys.argv[1] == "blocked":
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
outlive_sigterm()
os.kill(os.getpid(), signal.SIGTERM)
child = subprocess.Popen(["sleep", "1000"])
child.terminate()
print("alive", child.wait(), flush=True)
read, write = os.pipe()
if (fork := os.fork()) == 0:
    os.write(write, b"!")
    signal.pause()
os.read(read, 1)
os.kill(fork, signal.SIGTERM)
print(os.waitpid(fork, 0)[1])
"""


@pytest.mark.parametrize(("state", "code", "text"), [("blocked", 0, "alive -15\n15\n"), ("open", -signal.SIGTERM, "")])
def test_a_rank_of_a_cluster_of_its_own_outlives_sigterm_and_its_children_do_not(
    state: str, code: int, text: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _OUTLIVES, state], stdout=subprocess.PIPE, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (code, text)
