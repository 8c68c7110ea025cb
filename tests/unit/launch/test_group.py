"""What ranks are told before they meet: their places, their variables, their device."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import distributed_c10d

from shardyard import hardware, launch
from shardyard.engine.watch.collectives import limit_collectives
from shardyard.errors import HardwareError
from shardyard.launch.describe import places_in_words
from shardyard.launch.ray import worker_group
from shardyard.launch.ray.places import (
    Member,
    Seat,
    parted_groups,
    places_of,
    rank_order,
    seats_of,
)
from shardyard.launch.ray.process_group import open_port, rank_environment
from shardyard.launch.ray.rank_actor import Setup
from shardyard.launch.ray.ready import make_ready
from shardyard.launch.ray.worker_group import placement_seconds, reserve
from shardyard.launch.run.world import world_of
from shardyard.planning.placement import ANYWHERE, Amount, Demand, Placement
from shardyard.recipe.schema import Cluster, Network

DEMAND = Demand(workers=3, bundle=Amount(2.0, 0.5), group=1, strategy="spread", most_per_node=None)


def member(node: str, *gpus: str, address: str = "") -> Member:
    return Member(node, address or f"10.0.0.{node}", "host", 7, gpus, 1000)


def test_places_are_told_node_by_node() -> None:
    places = places_of([member("1", "0"), member("1", "1"), member("2", "0"), member("2", "3")])
    assert places_in_words(places) == "4 ranks on 2 nodes: 10.0.0.1 has 0–1, 10.0.0.2 has 2–3"
    assert places[1]["gpus"] == [["0"], ["3"]]
    assert parted_groups(places, 2) == 0
    assert parted_groups(places, 4) == 1
    mixed = places_of([member("1"), member("2"), member("1")])
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


def test_ranks_are_numbered_by_node_and_gpu() -> None:
    members = [member("b", "2"), member("a", "10"), member("b", "0"), member("a", "9"), member("c", "GPU-uuid")]
    assert rank_order(members) == [2, 0, 3, 1, 4]
    assert rank_order([member("b"), member("a"), member("b")]) == [0, 2, 1]
    seats = seats_of([members[index] for index in rank_order(members)], gpu=True)
    assert [(seat.rank, seat.local_rank, seat.node_rank) for seat in seats] == [
        (0, 0, 0),
        (1, 1, 0),
        (2, 0, 1),
        (3, 1, 1),
        (4, 0, 2),
    ]
    # Each sees the GPUs of all ranks of its node, and knows which is its own.
    assert [(seat.visible_gpus, seat.device) for seat in seats[:4]] == [
        (("0", "2"), "cuda:0"),
        (("0", "2"), "cuda:1"),
        (("9", "10"), "cuda:0"),
        (("9", "10"), "cuda:1"),
    ]
    assert {seat.local_world_size for seat in seats[:4]} == {2}
    assert [seat.device for seat in seats_of([member("a", "0"), member("a", "0")], gpu=False)] == ["cpu", "cpu"]


def test_two_nodes_of_ray_on_one_host_share_its_numbers_and_not_its_gpus() -> None:
    seats = seats_of([member("a", "1", address="::1"), member("b", "0", address="::1")], gpu=True)
    assert [(seat.local_rank, seat.local_world_size, seat.node_rank) for seat in seats] == [(0, 2, 0), (1, 2, 0)]
    assert [(seat.visible_gpus, seat.gpu) for seat in seats] == [(("1",), 0), (("0",), 0)]


def test_the_variables_of_a_rank_are_those_of_torchrun() -> None:
    seat = Seat(rank=3, world_size=4, local_rank=1, local_world_size=2, node_rank=1)
    expected = {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "NODE_RANK": "1",
        "GROUP_RANK": "1",
    }
    assert rank_environment(seat) == expected
    # DeepSpeed computes on the GPU with this index.
    assert rank_environment(replace(seat, gpu=0, visible_gpus=("5",))) == {**expected, "LOCAL_RANK": "0"}


def test_ranks_are_met_at_one_address_and_no_other() -> None:
    listening, port = open_port("127.0.0.1", 2)
    assert listening is not None
    with listening:
        assert listening.getsockname() == ("127.0.0.1", port)
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    # An address of documentation, which no interface has: torch then listens on all of them.
    listening, port = open_port("192.0.2.1", 2)
    assert listening is None
    assert port > 0


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


def test_bundles_name_their_nodes_where_there_are_several(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        worker_group,
        "placement_group",
        lambda bundles, strategy, bundle_label_selector: asked.append((bundles, strategy, bundle_label_selector)),
    )
    reserve(DEMAND, Placement((("b", 2), ("a", 1))))
    reserve(DEMAND, ANYWHERE)
    bundles = [{"CPU": 2.0, "GPU": 0.5}] * 3
    assert asked == [
        (bundles, "PACK", [{"ray.io/node-id": node} for node in ("b", "b", "a")]),
        (bundles, "SPREAD", None),
    ]


def test_ranks_that_shall_compute_on_gpus_and_got_none() -> None:
    group = worker_group.WorkerGroup(DEMAND, ANYWHERE, Setup(Network(), gpu=True, forwarded={}, private={}))
    with pytest.raises(HardwareError, match="Ray gave no GPU to the workers on host; set "):
        group.join([member("1"), member("2")], 1.0)


def test_time_to_place_grows_with_the_bundles() -> None:
    assert placement_seconds(2) == pytest.approx(10.2)
    assert placement_seconds(1024) > 100


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
from shardyard.launch.ray.ready import outlive_sigterm
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


def test_no_module_knows_ray_train() -> None:
    """Workers are actors of our own; its internals change from version to version."""
    package = Path(launch.__file__).parents[1]
    sources = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    knows = re.compile(r"^\s*(from|import) ray( import train|\.train)", re.MULTILINE)
    assert [name for name, text in sources.items() if knows.search(text)] == []
