"""What Shardyard works around in Ray: that the workarounds work, and that Ray still needs them.

A test named `test_ray_still_…` that fails says that a workaround in `launch/ray/quirks.py` has become unnecessary.
"""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
from pathlib import Path

import ray
from ray._private import node, services, utils, worker

from shardyard.launch.ray import quirks


def test_connecting_to_ray_leaves_the_handler_of_sigterm_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    mine = signal.default_int_handler
    signal.signal(signal.SIGTERM, mine)
    try:
        with quirks.signals_left_alone():
            utils.set_sigterm_handler(signal.SIG_DFL)
            assert signal.getsignal(signal.SIGTERM) is mine
        utils.set_sigterm_handler(mine)
        assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


def test_rays_daemons_do_not_hear_sigterm_and_are_in_no_group_of_ours() -> None:
    asked: list[str] = []
    with quirks.daemons_apart():
        daemon = services.ConsolePopen(["sleep", "1000"], preexec_fn=lambda: asked.append("as Ray does"))
    assert services.ConsolePopen is not quirks._Apart
    assert os.getsid(daemon.pid) == daemon.pid != os.getsid(0)
    os.kill(daemon.pid, signal.SIGTERM)
    status = Path(f"/proc/{daemon.pid}/status").read_text()
    [blocked] = [line.split()[1] for line in status.splitlines() if line.startswith("SigBlk")]
    assert int(blocked, 16) & 1 << signal.SIGTERM - 1
    assert daemon.poll() is None
    daemon.terminate()
    assert daemon.wait() == -signal.SIGKILL


def test_ray_still_handles_sigterm_as_it_connects() -> None:
    assert "set_sigterm_handler(sigterm_handler)" in inspect.getsource(worker)
    before = signal.getsignal(signal.SIGTERM)
    try:
        utils.set_sigterm_handler(signal.default_int_handler)
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_ray_still_starts_daemons_in_our_group_and_ends_them_by_sigterm() -> None:
    assert "start_new_session" not in inspect.getsource(services.start_ray_process)
    assert services.ConsolePopen.terminate is subprocess.Popen.terminate
    assert "ConsolePopen(" in inspect.getsource(services.start_ray_process)


def test_ray_still_starts_an_autoscaler_and_an_api_server_without_a_dashboard() -> None:
    starts = inspect.getsource(node.Node.start_head_processes) + inspect.getsource(node.Node.start_ray_processes)
    for name in ("start_monitor", "start_log_monitor", "start_api_server"):
        assert f"self.{name}(" in starts
        before = getattr(node.Node, name)
        with quirks.fewest_daemons():
            assert getattr(node.Node, name) is not before
        assert getattr(node.Node, name) is before
    assert "self.all_processes[ray_constants.PROCESS_TYPE_DASHBOARD]" in inspect.getsource(node.Node.start_api_server)


_ADDRESS = """
import os
from ray._private import services
from shardyard.launch.ray import quirks
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
print(services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1")
with quirks.one_node():
    print(services.resolve_ip_for_localhost("127.0.0.1") == "127.0.0.1")
services.get_node_ip_address = lambda *_: "10.1.2.3"
print(services.resolve_ip_for_localhost("127.0.0.1"))
quirks.nodes_at("127.0.0.1")
print(services.resolve_ip_for_localhost("127.0.0.1"))
"""


def test_ray_still_replaces_loopback_by_another_address_and_reads_its_variable_once() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", _ADDRESS], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    first, inside, replaced, after = done.stdout.split()
    # A host whose only address is loopback has nothing to replace it by.
    alone = services.get_node_ip_address() == "127.0.0.1"
    assert (first == "True") == alone
    assert (inside, replaced, after) == ("True", "10.1.2.3", "127.0.0.1")


def test_public_ray_still_says_what_is_free_in_sum_alone() -> None:
    assert not hasattr(ray, "available_resources_per_node")
    assert "available_resources_per_node" in inspect.getsource(quirks)
    assert callable(quirks.available_resources_per_node)


def test_the_private_names_are_there() -> None:
    assert hasattr(worker, "_global_node")
    assert "all_processes" in inspect.getsource(node.Node.__init__)
    assert callable(quirks.GcsClient)
