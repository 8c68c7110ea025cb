"""Addresses and ports: addresses of this machine, free ports, and probing of remote ports."""

from __future__ import annotations

import socket

import psutil

from shardyard.errors import UsageError
from shardyard.launch.local_cluster.plan import Ports

KNOCK_TIMEOUT_SECONDS = 5.0


def knock(host: str, port: int) -> str | None:
    """The reason why a port does not answer; None if it does. Ray itself would retry for minutes."""
    try:
        socket.create_connection((host, port), timeout=KNOCK_TIMEOUT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error) or "it does not answer"
    return None


def own_address(host: str) -> str:
    """The IPv4 address of a host name or address of this machine.

    Raises:
        UsageError: other machines cannot reach this one at it.
    """
    try:
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror or error}. Name an IPv4 address of this machine.") from error
    address = str(found[0][4][0])
    if address == "0.0.0.0":
        raise UsageError(
            "--host 0.0.0.0: nodes tell each other this address; give the one by which other hosts reach this machine "
            "(`ip -4 address` lists them)."
        )
    with socket.socket() as server:
        try:
            server.bind((address, 0))
        except OSError as error:
            raise UsageError(
                f"--host {host}: not an address of this machine ({error.strerror}); `ip -4 address` lists them."
            ) from error
    return address


def choose_ports(host: str, gcs: int, dashboard: int) -> Ports:
    """The ports of a head; 0 means any free port.

    Raises:
        UsageError: a port is in use, or both are equal.
    """
    if gcs == dashboard != 0:
        raise UsageError(f"--port and --dashboard-port are both {gcs}; they must differ.")
    for option, port in (("--port", gcs), ("--dashboard-port", dashboard)):
        if port and not _is_free(host, port):
            raise UsageError(
                f"{option} {port} of {host} is in use{_by(port)}; give another one, or 0 for any free one."
            )
    taken = _free_ports(host, 3)
    return Ports(gcs=gcs or taken[0], dashboard=dashboard or taken[1], client=taken[2])


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as server:
        # Ignore connections in TIME_WAIT.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError:
            return False
    return True


def _free_ports(host: str, count: int) -> list[int]:
    servers = [socket.socket() for _ in range(count)]
    try:
        for server in servers:
            server.bind((host, 0))
        return [int(server.getsockname()[1]) for server in servers]
    finally:
        for server in servers:
            server.close()


def _by(port: int) -> str:
    """A text that names the process listening on a port, if this user may see it."""
    try:
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port and connection.pid:
                return f" by {psutil.Process(connection.pid).name()} (process {connection.pid})"
    except (psutil.Error, OSError):
        pass
    return ""
