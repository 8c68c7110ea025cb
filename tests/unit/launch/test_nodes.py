"""The pure parts of `shardyard cluster`: shares, command lines, records, tokens, explanations. Starts nothing."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from shardyard.errors import HardwareError, ShardyardError, UsageError
from shardyard.launch.local_cluster import nodes, processes, token
from shardyard.launch.local_cluster import plan as nodes_plan
from shardyard.launch.local_cluster import status as nodes_status
from shardyard.launch.local_cluster.explain import explain_log
from shardyard.launch.local_cluster.network import choose_ports, knock, own_address
from shardyard.launch.local_cluster.nodes import ClusterRecord, StartedNode
from shardyard.launch.local_cluster.plan import NodePlan, Ports
from shardyard.launch.schedulers.ray.api import target

RECORD = ClusterRecord(
    id="5ca1ab1e",
    role="head",
    gcs="127.0.0.1:6379",
    token_path="/home/someone/.shardyard/token",
    temp_dir="/tmp/shardyard-x",
    started=1000.0,
    ray="2.60.0",
    python="3.11.9",
    shardyard="0.1.0",
    dashboard="http://127.0.0.1:8265",
    nodes=(StartedNode("head", 1, 1000.0, 2, 0, "/somewhere/head.log"),),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDYARD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)
    return tmp_path / "home"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_nodes_share_cores_and_gpus_of_the_machine() -> None:
    plans = nodes_plan.plan_nodes(3, cpus=None, gpus=None, cores=8, gpu_ids=["0", "1", "2", "3"])
    assert [plan.name for plan in plans] == ["head", "node-1", "node-2"]
    assert [plan.cpus for plan in plans] == [3, 3, 2]
    assert [plan.gpus for plan in plans] == [("0", "1"), ("2",), ("3",)]


def test_what_a_single_node_has_is_counted_by_ray() -> None:
    assert nodes_plan.plan_nodes(1, cpus=None, gpus=None, cores=8, gpu_ids=["0"]) == (NodePlan("head", None, None),)
    assert nodes_plan.plan_nodes(1, cpus=3, gpus=1, cores=8, gpu_ids=["4", "5"]) == (NodePlan("head", 3, ("4",)),)


def test_no_gpu_is_given_twice_and_a_node_has_a_core_at_least() -> None:
    plans = nodes_plan.plan_nodes(2, cpus=None, gpus=1, cores=1, gpu_ids=["GPU-a", "GPU-b", "GPU-c"])
    assert [(plan.cpus, plan.gpus) for plan in plans] == [(1, ("GPU-a",)), (1, ("GPU-b",))]
    with pytest.raises(HardwareError, match="need 4, this machine has 3"):
        nodes_plan.plan_nodes(2, cpus=None, gpus=2, cores=1, gpu_ids=["0", "1", "2"])


@pytest.mark.parametrize(
    ("visible", "expected"), [(None, ("0", "1")), ("", ()), ("-1", ()), ("1", ("1",)), ("GPU-a, 3", ("GPU-a", "3"))]
)
def test_cuda_visible_devices_is_honoured(visible: str | None, expected: tuple[str, ...]) -> None:
    assert nodes_plan.visible_gpus(visible, 2) == expected


def test_a_head_listens_where_it_is_told() -> None:
    command = nodes_plan.head_command(NodePlan("head", 2, ("5",)), RECORD, Ports(gcs=6379, dashboard=8265, client=7000))
    for option in (
        *("--head", "--block", "--node-ip-address=127.0.0.1", "--port=6379", "--dashboard-host=127.0.0.1"),
        *("--dashboard-port=8265", "--ray-client-server-port=7000", "--num-cpus=2", "--num-gpus=1"),
        "--labels=shardyard.node=head,shardyard.start=5ca1ab1e",
    ):
        assert option in command


@pytest.mark.parametrize(
    ("environment", "given"),
    [
        ({}, True),
        ({"RAY_REDIS_ADDRESS": "redis.example:6379"}, False),
        ({"RAY_gcs_rpc_server_reconnect_timeout_s": "90"}, False),
    ],
)
def test_a_cluster_waits_for_its_head_only_where_it_can_come_back(environment: dict[str, str], given: bool) -> None:
    ports = Ports(gcs=6379, dashboard=8265, client=7000)
    command = nodes_plan.head_command(NodePlan("head", 2, None), RECORD, ports, environment)
    limit = '--system-config={"gcs_rpc_server_reconnect_timeout_s": 15}'
    assert [part for part in command if part.startswith("--system-config")] == ([limit] if given else [])


def test_another_node_goes_to_the_head_and_takes_any_port() -> None:
    command = nodes_plan.worker_command(NodePlan("node-1", None, None), RECORD, None)
    assert "--address=127.0.0.1:6379" in command
    assert {"--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0"} <= set(command)
    assert not [part for part in command if part.startswith(("--num-", "--node-ip-address", "--head"))]


def test_the_environment_of_a_node_holds_no_other_cluster() -> None:
    base = {"PATH": "/bin", "RAY_ADDRESS": "elsewhere:1", "RAY_AUTH_TOKEN": "another", "RAY_AUTH_MODE": "disabled"}
    environment = nodes_plan.node_environment(base, NodePlan("head", 1, ("2", "3")), RECORD, metrics=False)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_AUTH_TOKEN_PATH"] == RECORD.token_path
    assert environment["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert environment[nodes_plan.CLUSTER_ID] == RECORD.id
    assert environment["PATH"] == f"{Path(sys.executable).parent}:/bin"
    assert environment["RAY_enable_metrics_collection"] == "0"
    assert not {"RAY_ADDRESS", "RAY_AUTH_TOKEN"} & set(environment)
    with_metrics = nodes_plan.node_environment(base, NodePlan("head", 1, ()), RECORD, metrics=True)
    assert not {"RAY_enable_metrics_collection", "DASHBOARD_METRIC_PORT", "CUDA_VISIBLE_DEVICES"} & set(with_metrics)


@pytest.mark.parametrize("address", ["", "6379", ":6379", "host:", "host:0", "host:70000", "ray://host:1", "host:x"])
def test_what_is_no_address_is_said_so(address: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        nodes_plan.split_address(address)


def test_addresses_are_split() -> None:
    assert nodes_plan.split_address("head.example:6379") == ("head.example", 6379)


def test_names_of_hosts_become_names_that_labels_allow() -> None:
    assert nodes_plan.node_name("gpu-07.example") == "gpu-07.example"
    assert nodes_plan.node_name("-höst_") == "h-st"
    assert nodes_plan.node_name("…") == "node"
    assert len(nodes_plan.node_name("x" * 200)) == 63


def test_a_record_is_read_as_it_was_written_and_by_its_user_alone(home: Path) -> None:
    assert nodes.read_record() is None
    nodes.write_record(RECORD)
    assert nodes.read_record() == RECORD
    assert mode(home / "cluster.json") == 0o600
    assert mode(home) == 0o700
    assert {"dashboard", "gcs", "token_path", "nodes", "ray"} <= set(json.loads(nodes.record_path().read_text()))
    nodes.remove_record()
    nodes.remove_record()
    assert nodes.read_record() is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": [{"pid": 1}]}', '{"nodes": [], "unknown": 1}'])
def test_a_damaged_record_is_said_so(home: Path, text: str) -> None:
    nodes.make_home()
    nodes.record_path().write_text(text)
    with pytest.raises(ShardyardError, match=r"cluster\.json is damaged"):
        nodes.read_record()


def test_one_command_at_a_time(home: Path) -> None:
    with nodes.exclusively(), pytest.raises(UsageError, match="another"), nodes.exclusively():
        pass
    with nodes.exclusively():
        pass


def test_the_environment_for_clients_names_the_cluster(home: Path) -> None:
    assert RECORD.environment() == {
        "RAY_ADDRESS": "127.0.0.1:6379",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": "/home/someone/.shardyard/token",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    assert set(replace(RECORD, gcs="10.0.0.1:6379").environment()) == {
        "RAY_ADDRESS",
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
    }


def test_a_token_is_made_once_and_anew_on_request(home: Path) -> None:
    path = token.ensure_token()
    first = path.read_text()
    assert path == home / "token"
    assert len(bytes.fromhex(first)) == 32
    assert mode(path) == 0o600
    assert token.ensure_token().read_text() == first
    assert token.new_token().read_text() != first
    assert mode(path) == 0o600


def test_a_given_token_is_taken_and_never_written(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = tmp_path / "given"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(given))
    with pytest.raises(ShardyardError, match="cannot be read"):
        token.ensure_token()
    given.write_text("abc")
    given.chmod(0o600)
    assert token.ensure_token() == given
    with pytest.raises(UsageError, match="unset it"):
        token.new_token()
    assert given.read_text() == "abc"


@pytest.mark.parametrize(("text", "bits", "reason"), [("", 0o600, "is empty"), ("abc", 0o644, "read by others")])
def test_a_token_that_protects_nothing_is_refused(home: Path, text: str, bits: int, reason: str) -> None:
    path = token.ensure_token()
    path.write_text(text)
    path.chmod(bits)
    with pytest.raises(ShardyardError, match=reason):
        token.ensure_token()


@pytest.fixture
def ray_token(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where Ray keeps its own token; nothing is there yet."""
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "person"))
    (tmp_path / "person").mkdir()
    return tmp_path / "person" / ".ray" / "auth_token"


def test_rays_own_token_is_made_closed_and_mended(ray_token: Path) -> None:
    token.ensure_ray_token()
    first = ray_token.read_text()
    assert (mode(ray_token), mode(ray_token.parent), len(bytes.fromhex(first))) == (0o600, 0o700, 32)
    assert [path.name for path in ray_token.parent.iterdir()] == ["auth_token"]
    ray_token.chmod(0o644)
    token.ensure_ray_token()
    assert (mode(ray_token), ray_token.read_text()) == (0o600, first)


def test_a_client_of_jobs_mends_it_and_refuses_an_open_one_that_was_named(
    ray_token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray_token.parent.mkdir()
    ray_token.write_text("abc")
    ray_token.chmod(0o644)
    assert target("http://127.0.0.1:8265").token == "abc"
    assert mode(ray_token) == 0o600
    given = tmp_path / "given"
    given.write_text("def")
    given.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(given))
    for ask in (lambda: target("http://127.0.0.1:8265"), token.ensure_ray_token):
        with pytest.raises(ShardyardError, match="can be read by others; run `chmod 600"):
            ask()
    given.chmod(0o600)
    token.ensure_ray_token()
    assert target("http://127.0.0.1:8265").token == "def"


def test_a_token_that_cannot_be_closed_is_told(ray_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_token.parent.write_text("a file where the folder should be")
    with pytest.raises(ShardyardError, match="cannot be made private"):
        token.ensure_ray_token()
    # Whoever brings a token in another way, or none, has no file.
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    token.ensure_ray_token()


def test_only_addresses_of_this_machine_are_taken() -> None:
    assert own_address("127.0.0.1") == "127.0.0.1"
    assert own_address("localhost") == "127.0.0.1"
    for host, reason in (("0.0.0.0", "give the one"), ("192.0.2.7", "not an address of this machine")):
        with pytest.raises(UsageError, match=reason):
            own_address(host)
    with pytest.raises(UsageError, match="no-such-host"):
        own_address("no-such-host.invalid")


def test_busy_ports_are_refused_and_zero_takes_free_ones() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        busy = server.getsockname()[1]
        assert knock("127.0.0.1", busy) is None
        with pytest.raises(UsageError, match=rf"--dashboard-port {busy} of 127\.0\.0\.1 is in use by .*{os.getpid()}"):
            choose_ports("127.0.0.1", 0, busy)
    assert knock("127.0.0.1", busy) is not None
    with pytest.raises(UsageError, match="both 7000"):
        choose_ports("127.0.0.1", 7000, 7000)
    ports = choose_ports("127.0.0.1", 0, busy)
    assert ports.dashboard == busy
    assert len({ports.gcs, ports.dashboard, ports.client}) == 3
    assert min(ports.gcs, ports.client) > 1023


def test_a_process_with_a_used_number_is_none_of_ours() -> None:
    """Its number in a record is not enough, nor is its session."""
    pid, created = os.getpid(), psutil.Process().create_time()
    ours = replace(RECORD, started=0.0, nodes=(StartedNode("head", pid, created, 1, 0, ""),))
    assert processes.is_alive(ours.nodes[0])
    stranger = replace(ours.nodes[0], created=created - 100)
    assert not processes.is_alive(stranger)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True)
    try:
        assert processes.members(replace(ours, nodes=(replace(stranger, pid=child.pid),))) == []
    finally:
        child.communicate()


def described(name: str, state: str = "IDLE", *, start: str = RECORD.id, head: bool = False) -> SimpleNamespace:
    """A node as Ray describes it."""
    total = {"CPU": 2.0, "memory": 1e9} | ({"node:__internal_head__": 1.0} if head else {})
    return SimpleNamespace(
        labels={nodes_plan.NAME_LABEL: name, nodes_plan.START_LABEL: start},
        node_id="abcdef0123456789",
        ip_address="10.0.0.1",
        node_status=state,
        failure_detail="NodeTerminated" if state == "DEAD" else None,
        total_resources=lambda: {} if state == "DEAD" else total,
        available_resources=lambda: {} if state == "DEAD" else {**total, "CPU": 0.5},
    )


def test_nodes_are_listed_head_first_and_without_those_that_came_back() -> None:
    infos = [described("b", start="x"), described("b", "DEAD", start="x"), described("head", head=True)]
    infos.append(described("c", "DEAD", start="x"))
    found = nodes_status._newest([nodes_status._node(info, RECORD) for info in infos])
    assert [(node.name, node.state, node.head, node.started_here) for node in found] == [
        ("head", "ALIVE", True, True),
        ("b", "ALIVE", False, False),
        ("c", "DEAD", False, False),
    ]
    assert found[0].free == {"CPU": 0.5, "GPU": 0.0}
    status = nodes_status.ClusterStatus(RECORD, found, None)
    assert status.sum_of("total") == {"CPU": 4.0, "GPU": 0.0}
    assert status.healthy


def test_a_node_whose_processes_ended_is_dead_whatever_the_head_believes() -> None:
    node = nodes_status._node(described("node-1"), RECORD)
    corrected = nodes_status._corrected(node, ["node-1"])
    assert (corrected.state, corrected.total, corrected.problem) == ("DEAD", {}, "its processes have ended")
    assert nodes_status._corrected(node, []) == node
    other = nodes_status._node(described("node-1", start="another"), RECORD)
    assert nodes_status._corrected(other, ["node-1"]) == other


def test_a_refused_token_and_other_versions_are_explained() -> None:
    text = explain_log("Traceback\nray.exceptions.AuthenticationError: InvalidAuthToken", "it ended", RECORD)
    assert "refuses the token in /home/someone/.shardyard/token" in text
    log = "Version mismatch: The cluster was started with:\n    Ray: 2.59.1\n    Python: 3.12.4\nThis process on node"
    text = explain_log(f"\x1b[31m{log}\x1b[0m", "it ended", RECORD)
    assert "runs Ray 2.59.1 and Python 3.12.4, this host has Ray 2.60.0 and Python 3.11.9" in text
    text = explain_log("one\n\ntwo\n", "the head ended", RECORD)
    assert text.startswith("the head ended; ")
    assert text.endswith("  one\n  two")
    assert explain_log("", "it ended", RECORD).endswith("  nothing")
