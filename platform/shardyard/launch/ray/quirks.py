"""Ray's habits that Shardyard works around, and its private names; tests say when each is past.

Seen in Ray 2.60; `tests/unit/launch/test_ray_quirks.py` fails where a newer version no longer needs one of these, or
has lost a name.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psutil
import ray
from ray._private import ray_constants, services, utils
from ray._private.state import available_resources_per_node
from ray._raylet import GcsClient  # type: ignore[attr-defined]

from shardyard.replaced import replaced

# Signals and processes.


@contextmanager
def signals_left_alone() -> Iterator[None]:
    """Connect without Ray's handlers of SIGTERM: one in Python that ends the process, and one in C++ that has it
    aborted 3 s later whatever it does. The latter comes with the connection and goes when the former handler is set
    anew, which only the main thread can: whoever connects on another has the main thread do it."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with replaced(utils, "set_sigterm_handler", lambda handler: None):
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


class _Apart(services.ConsolePopen):  # type: ignore[misc]
    """A daemon in a session of its own, to which SIGTERM means nothing, nor to the processes that it starts."""

    def __init__(self, *arguments: Any, preexec_fn: Callable[[], None], **settings: Any) -> None:
        def prepare() -> None:
            preexec_fn()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

        super().__init__(*arguments, preexec_fn=prepare, **{**settings, "start_new_session": True})

    def terminate(self) -> None:
        """What Ray does to end it, and would wait a second for."""
        self.kill()


def daemons_apart() -> AbstractContextManager[None]:
    """Start Ray's daemons, and so all ranks, such that SIGTERM does not end them.

    Shells and `timeout` send it to the whole process group, systemd and Slurm to every process of a job: the driver
    alone knows that a checkpoint is to be written first, and ends the others after it. Should the driver be killed, the
    kernel kills them (Ray sets PR_SET_PDEATHSIG).
    """
    return replaced(services, "ConsolePopen", _Apart)


def processes_started_here() -> list[psutil.Process]:
    """Ray's daemons and everything below them; [] of a cluster that others have started."""
    node = ray._private.worker._global_node
    if node is None:
        return []
    found = []
    for info in [info for infos in node.all_processes.values() for info in infos]:
        with contextlib.suppress(psutil.NoSuchProcess):
            daemon = psutil.Process(info.process.pid)
            found += [daemon, *daemon.children(recursive=True)]
    return found


# Addresses.


def one_node() -> AbstractContextManager[None]:
    """Let a cluster that is started inside keep 127.0.0.1, which Ray replaces by another address of the host.

    Ray has a variable for it (`RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0`), which it read when it was imported.
    """
    return replaced(ray_constants, "ENABLE_RAY_CLUSTER", False)


def nodes_at(address: str) -> None:
    """Start any number of nodes of this host at one address, for the rest of this process.

    The variable that keeps 127.0.0.1 is meant for systems where Ray supports a single node, and refuses a second one.
    """
    services.get_node_ip_address = lambda address_of_head=None: address
    ray_constants.ENABLE_RAY_CLUSTER = True


# What the head knows.


def free_resources() -> Mapping[str, Mapping[str, float]]:
    """What nobody has reserved, by node; public Ray has the sum over all nodes alone."""
    return available_resources_per_node()  # type: ignore[no-any-return]


def take_internal(address: str, key: str) -> bytes | None:
    """Take a value out of the store in which a head keeps packages, without connecting as a driver; None for none."""
    client: Any = GcsClient(address=address)
    found: bytes | None = client.internal_kv_get(key.encode(), None)
    client.internal_kv_del(key.encode(), False, None)
    return found
