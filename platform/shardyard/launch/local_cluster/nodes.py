"""The record of the cluster on this machine, which `down`, `status` and `submit` read."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from shardyard.errors import ShardyardError, UsageError
from shardyard.tracking.files import write_atomically

LOOPBACK = "127.0.0.1"
# Keeps Ray's servers and clients from replacing 127.0.0.1 with another address of this host, on which a loopback
# cluster does not listen. The variable is named after the systems where this is Ray's default.
LOOPBACK_ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}


@dataclass(frozen=True)
class StartedNode:
    """A node started on this machine: the process of its `ray start`, a session leader.

    created: when that process started, in seconds since 1970; distinguishes it from a later process with the same id.
    cpus, gpus: resources of the node; None if Ray detects them.
    """

    name: str
    pid: int
    created: float
    cpus: int | None
    gpus: int | None
    log: str


@dataclass(frozen=True)
class ClusterRecord:
    """The contents of cluster.json.

    id: in the environment of each process of the cluster that was started on this machine.
    role: head if the cluster was started here, worker if this machine joined a remote one.
    dashboard: URL of Ray's dashboard and Jobs API; None while it starts.
    gcs: `host:port`, for RAY_ADDRESS.
    token_path: file with the token, which is stored nowhere else.
    temp_dir: folder of Ray's sockets, logs and spilled objects, private to this user.
    started: seconds since 1970.
    """

    id: str
    role: Literal["head", "worker"]
    gcs: str
    token_path: str
    temp_dir: str
    started: float
    ray: str
    python: str
    shardyard: str
    dashboard: str | None = None
    nodes: tuple[StartedNode, ...] = field(default=())

    def with_node(self, node: StartedNode) -> ClusterRecord:
        """The record with one more node."""
        return replace(self, nodes=(*self.nodes, node))

    @property
    def on_loopback(self) -> bool:
        """Whether the cluster is reachable from this machine only."""
        return self.gcs.startswith(f"{LOOPBACK}:")

    def environment(self) -> dict[str, str]:
        """The environment variables with which Ray's commands and `shardyard launch` reach the cluster."""
        known = {"RAY_ADDRESS": self.gcs, **token_environment(Path(self.token_path))}
        return known | (LOOPBACK_ENVIRONMENT if self.on_loopback else {})


def token_environment(token: Path) -> dict[str, str]:
    """The variables that make Ray's servers and clients use the token of this file."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def home() -> Path:
    """The folder of the record, the token and the logs: SHARDYARD_HOME, or ~/.shardyard."""
    return Path(os.environ.get("SHARDYARD_HOME") or Path.home() / ".shardyard")


def make_home() -> Path:
    """The folder, created if missing, for this user only."""
    folder = home()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def record_path() -> Path:
    """The path of the record."""
    return home() / "cluster.json"


def read_record() -> ClusterRecord | None:
    """The record of this machine's cluster; None if none was started, or it was stopped.

    Raises:
        ShardyardError: the file is not a record.
    """
    path = record_path()
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        nodes = tuple(StartedNode(**node) for node in values.pop("nodes"))
        return ClusterRecord(**values, nodes=nodes)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ShardyardError(
            f"{path} is damaged, so the processes of the cluster cannot be identified. Stop them by hand (`ps -ef | "
            "grep ray`; `ray stop` ends every Ray process of yours), then remove the file."
        ) from error


def write_record(record: ClusterRecord) -> None:
    """Write the record atomically, readable by this user only."""
    make_home()
    previous = os.umask(0o077)
    try:
        write_atomically(record_path(), json.dumps(asdict(record), indent=2) + "\n")
    finally:
        os.umask(previous)


def remove_record() -> None:
    """Remove the record."""
    record_path().unlink(missing_ok=True)


@contextmanager
def exclusively() -> Iterator[None]:
    """Hold a lock that allows only one `up`, `join` or `down` at a time.

    Raises:
        UsageError: another one is running.
    """
    descriptor = os.open(make_home() / "cluster.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError("another `shardyard cluster` command is starting or stopping the cluster; wait.") from None
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)
