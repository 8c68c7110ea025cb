"""Starting and stopping the cluster of this machine: a head with further nodes, or one node of a remote cluster."""

from __future__ import annotations

import os
import platform
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import psutil

from shardyard import __version__
from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.local_cluster import nodes, processes
from shardyard.launch.local_cluster import plan as nodes_plan
from shardyard.launch.local_cluster.explain import explain_log
from shardyard.launch.local_cluster.network import choose_ports, knock, own_address
from shardyard.launch.local_cluster.nodes import ClusterRecord, StartedNode
from shardyard.launch.local_cluster.plan import NodePlan
from shardyard.launch.local_cluster.status import answers, dashboard_url, registered
from shardyard.launch.local_cluster.token import ensure_token

# Ray's own limit is 30 s per node; a busy machine needs longer to start all nodes.
START_TIMEOUT_SECONDS = 120.0
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Wishes:
    """The options of a cluster; None means the default.

    cpus, gpus: of each node.
    host: the address of this machine in the cluster.
    port, dashboard_port: 0 means any free port.
    metrics: export metrics for Prometheus, without a token.
    """

    count: int = 1
    cpus: int | None = None
    gpus: int | None = None
    host: str | None = None
    port: int = 6379
    dashboard_port: int = 8265
    metrics: bool = False


def up(wishes: Wishes, report: Callable[[str], None]) -> ClusterRecord:
    """Start a head and `wishes.count` - 1 further nodes on this machine; returns once all have registered.

    Raises:
        UsageError: a cluster is already up, a port is in use, or the address does not belong to this machine.
        ShardyardError: the cluster could not be started; everything is cleaned up.
    """
    with nodes.exclusively():
        _refuse_second()
        host = own_address(wishes.host or nodes.LOOPBACK)
        token = ensure_token()
        ports = choose_ports(host, wishes.port, wishes.dashboard_port)
        plans = _plans(wishes)
        record = _new_record("head", f"{host}:{ports.gcs}", token)
        record = replace(record, dashboard=f"http://{host}:{ports.dashboard}")
        with _all_or_nothing(record, wishes.metrics) as startup:
            report(f"starting a head at {record.gcs}")
            startup.start(plans[0], nodes_plan.head_command(plans[0], record, ports, os.environ))
            startup.wait(lambda: knock(host, ports.gcs) is None and answers(record), "the head")
            if len(plans) > 1:
                report(f"starting {len(plans) - 1} more node(s)")
            for plan in plans[1:]:
                startup.start(plan, nodes_plan.worker_command(plan, record, host))
            startup.wait_for_nodes()
            return startup.record


def join(address: str, wishes: Wishes, report: Callable[[str], None]) -> ClusterRecord:
    """Start a node on this machine that joins the cluster whose head is at `address` (`HOST:PORT`).

    Raises:
        UsageError: a cluster is already up on this machine, or the address is invalid.
        ShardyardError: the head cannot be reached, has another token, or runs another version; everything is cleaned
        up.
    """
    with nodes.exclusively():
        _refuse_second()
        head, port = nodes_plan.split_address(address)
        token = ensure_token()
        reason = knock(head, port)
        if reason is not None:
            raise ShardyardError(
                f"the head at {address} cannot be reached: {reason}. Check the address that `shardyard cluster up` "
                "printed there, and that no firewall blocks it."
            )
        host = own_address(wishes.host) if wishes.host else None
        plan = replace(_plans(wishes)[0], name=nodes_plan.node_name(socket.gethostname()))
        record = _new_record("worker", address, token)
        with _all_or_nothing(record, wishes.metrics) as startup:
            report(f"joining the cluster at {address}")
            startup.start(plan, nodes_plan.worker_command(plan, record, host))
            startup.wait_for_nodes()
            joined = replace(startup.record, dashboard=dashboard_url(record))
            nodes.write_record(joined)
            return joined


def down() -> ClusterRecord | None:
    """Stop everything started on this machine; removes and returns the record, None if there was none.

    Raises:
        ShardyardError: a process cannot be stopped.
    """
    with nodes.exclusively():
        record = nodes.read_record()
        if record is not None:
            _end(record)
        return record


class _Startup:
    """A starting cluster: its nodes so far and their state."""

    def __init__(self, record: ClusterRecord, metrics: bool) -> None:
        self.record, self.metrics = record, metrics
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, plan: NodePlan, command: Sequence[str]) -> None:
        """Start a node and record it immediately, so that `down` always finds it."""
        environment = nodes_plan.node_environment(os.environ, plan, self.record, metrics=self.metrics)
        log = _log_folder() / f"{plan.name}.log"
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=descriptor,
                stderr=descriptor,
                env=environment,
                cwd="/",
                start_new_session=True,
            )
        finally:
            os.close(descriptor)
        self.processes[plan.name] = process
        gpus = None if plan.gpus is None else len(plan.gpus)
        created = _created(process.pid)
        self.record = self.record.with_node(StartedNode(plan.name, process.pid, created, plan.cpus, gpus, str(log)))
        nodes.write_record(self.record)

    def wait_for_nodes(self) -> None:
        """Wait until all nodes have registered with the head."""
        names = {node.name for node in self.record.nodes}
        self.wait(lambda: names <= registered(self.record), "the cluster")

    def wait(self, ready: Callable[[], bool], what: str) -> None:
        """Wait until `ready`.

        Raises:
            ShardyardError: a node ended, or the time limit is over.
        """
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not ready():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    raise ShardyardError(self._why(name, f"{name} ended while {what} was starting"))
            if time.monotonic() > deadline:
                raise ShardyardError(
                    self._why(list(self.processes)[-1], f"{what} did not start within {START_TIMEOUT_SECONDS:.0f} s")
                )
            time.sleep(POLL_SECONDS)

    def _why(self, name: str, what: str) -> str:
        log = (_log_folder() / f"{name}.log").read_text(encoding="utf-8", errors="replace")
        return explain_log(log, what, self.record)


@contextmanager
def _all_or_nothing(record: ClusterRecord, metrics: bool) -> Iterator[_Startup]:
    """On any error, including Ctrl-C, stop everything that was started."""
    startup = _Startup(record, metrics)
    try:
        nodes.write_record(record)
        yield startup
    except BaseException:
        with _deaf_to_interrupts():
            _end(startup.record)
            for process in startup.processes.values():
                process.wait()
        raise


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ignore further Ctrl-C during the cleanup."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _refuse_second() -> None:
    existing = nodes.read_record()
    if existing is None:
        return
    if processes.members(existing):
        raise UsageError(
            f"a cluster is up already, with its head at {existing.gcs}; `shardyard cluster status` shows it, "
            "`shardyard cluster down` stops it."
        )
    _forget(existing)


def _end(record: ClusterRecord) -> None:
    left = processes.end(record)
    if left:
        raise ShardyardError(
            f"process(es) {', '.join(map(str, left))} of the cluster cannot be stopped; they may belong to another "
            "user or wait for a device. Try `shardyard cluster down` again."
        )
    _forget(record)


def _forget(record: ClusterRecord) -> None:
    # For Ray's sockets, daemon logs and spilled objects; the output of runs is in their run folders.
    shutil.rmtree(record.temp_dir, ignore_errors=True)
    shutil.rmtree(_log_folder(), ignore_errors=True)
    nodes.remove_record()


def _new_record(role: str, gcs: str, token: Path) -> ClusterRecord:
    assert role in ("head", "worker"), role
    return ClusterRecord(
        id=secrets.token_hex(8),
        role="head" if role == "head" else "worker",
        gcs=gcs,
        token_path=str(token),
        # Sockets are created in it; their paths are limited to 107 characters.
        temp_dir=tempfile.mkdtemp(prefix="shardyard-", dir="/tmp"),
        started=time.time(),
        ray=metadata.version("ray"),
        python=platform.python_version(),
        shardyard=__version__,
    )


def _plans(wishes: Wishes) -> tuple[NodePlan, ...]:
    devices = len(list(Path("/dev").glob("nvidia[0-9]*")))
    gpu_ids = nodes_plan.visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"), devices)
    cores = len(os.sched_getaffinity(0))
    return nodes_plan.plan_nodes(wishes.count, cpus=wishes.cpus, gpus=wishes.gpus, cores=cores, gpu_ids=gpu_ids)


def _log_folder() -> Path:
    folder = nodes.make_home() / "cluster"
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _created(pid: int) -> float:
    with suppress(psutil.Error):
        return float(psutil.Process(pid).create_time())
    return time.time()
