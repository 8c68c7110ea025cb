"""Workarounds for Ray, and its private names; tests detect obsolete ones.

Seen in Ray 2.60; `tests/unit/launch/test_ray_quirks.py` fails if a newer version no longer needs one of these, or no
longer has a name.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services, utils
from ray._private.node import Node as HeadNode
from ray._private.state import available_resources_per_node
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from shardyard.replaced import replaced

# Signals and processes.


@contextmanager
def signals_left_alone() -> Iterator[None]:
    """Connect without Ray's SIGTERM handlers: one in Python that ends the process, and one in C++ that aborts it 3 s
    later. The latter is installed on connecting, and removed by restoring the previous handler, which only the main
    thread can do."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with replaced(utils, "set_sigterm_handler", lambda handler: None):
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class _Apart(services.ConsolePopen):  # type: ignore[misc]
    """A daemon in its own session; it and its children ignore SIGTERM."""

    def __init__(self, *arguments: Any, preexec_fn: Callable[[], None], **settings: Any) -> None:
        def prepare() -> None:
            preexec_fn()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        super().__init__(*arguments, preexec_fn=prepare, **{**settings, "start_new_session": True})

    def terminate(self) -> None:
        """Kill at once: Ray would send SIGTERM and wait a second."""
        self.kill()


def daemons_apart() -> AbstractContextManager[None]:
    """Start Ray's daemons, and thus all ranks, so that SIGTERM does not end them.

    Shells and `timeout` send it to the whole process group, systemd and Slurm to every process of a job, but the driver
    must first have a checkpoint written and then stops the others. If the driver is killed, the kernel kills them (Ray
    sets PR_SET_PDEATHSIG).
    """
    return replaced(services, "ConsolePopen", _Apart)


@contextmanager
def fewest_daemons() -> Iterator[None]:
    """A Ray started inside has neither autoscaler nor API server nor a process that forwards logs, which a run on one
    machine does not use. Ray starts them even without its dashboard, and waits for the second before it starts its
    nodes: two seconds of CPU time."""

    def no_api_server(node: Any, **_: Any) -> None:
        node._webui_url = ""

    with (
        replaced(HeadNode, "start_monitor", lambda node: None),
        replaced(HeadNode, "start_log_monitor", lambda node: None),
        replaced(HeadNode, "start_api_server", no_api_server),
    ):
        yield


def processes_started_here() -> list[psutil.Process]:
    """Ray's daemons and their descendants; [] for a cluster that was not started here."""
    node = ray._private.worker._global_node
    if node is None:
        return []
    found = []
    for info in [info for infos in node.all_processes.values() for info in infos]:
        with contextlib.suppress(psutil.NoSuchProcess):
            daemon = psutil.Process(info.process.pid)
            found += [daemon, *daemon.children(recursive=True)]
    return found


def session_folder() -> Path | None:
    """The folder of a Ray that was started here, with its logs and sockets; None for a cluster that was not."""
    node = ray._private.worker._global_node
    return Path(node.get_session_dir_path()) if node is not None and node.head else None


# Addresses.


def one_node() -> AbstractContextManager[None]:
    """Let a cluster started inside keep 127.0.0.1, which Ray replaces with another address of the host.

    Ray has a variable for it (`RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`), but reads it only when imported.
    """
    return replaced(ray_constants, "ENABLE_RAY_CLUSTER", False)


def nodes_at(address: str) -> None:
    """Allow any number of nodes of this host at one address, for the rest of this process.

    The variable that keeps 127.0.0.1 is intended for systems where Ray supports one node, and refuses a second one.
    """
    services.get_node_ip_address = lambda address_of_head=None: address
    ray_constants.ENABLE_RAY_CLUSTER = True


# State of the head.


def free_resources() -> Mapping[str, Mapping[str, float]]:
    """Free resources by node; Ray's public API gives only the sum over all nodes."""
    return available_resources_per_node()  # type: ignore[no-any-return]


def take_internal(address: str, key: str) -> bytes | None:
    """Fetch and remove a value from the head's package store, without connecting as a driver; None if missing."""
    client: Any = GcsClient(address=address)
    found: bytes | None = client.internal_kv_get(key.encode(), None)
    client.internal_kv_del(key.encode(), False, None)
    return found
