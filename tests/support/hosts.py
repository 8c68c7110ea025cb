"""Simulated hosts on one machine: network namespaces with their own addresses on an isolated bridge.

All share the file system, like hosts with shared storage; each has its own SHARDYARD_HOME. Needs root and `ip`.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from support.cli import COMMAND
from support.waiting import PATIENCE_SECONDS, until

RAY = str(Path(sys.executable).with_name("ray"))
# Variables of the test machine would set the locations of Ray, runs and tokens.
FOREIGN = ("RAY_", "SHARDYARD_", "GLOO_", "NCCL_")


def clean_environment(**environment: str) -> dict[str, str]:
    """The environment of this process without variables about clusters, plus the given ones."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    return {**kept, "NO_COLOR": "1", **environment}


@dataclass(frozen=True)
class Listener:
    """A listening TCP socket; `title` is the name of its process in `ps`."""

    address: str
    port: int
    pid: int
    title: str


@dataclass(frozen=True)
class Host:
    """A network namespace called `namespace`, with `address` on `eth0`."""

    name: str
    namespace: str
    address: str
    home: Path

    def environment(self, **extra: str) -> dict[str, str]:
        """The environment of commands on this host; `extra` takes precedence."""
        return clean_environment(SHARDYARD_HOME=str(self.home), **extra)

    def start(self, *command: object, **environment: str) -> subprocess.Popen[str]:
        """Start a command on this host, in a new session."""
        return subprocess.Popen(
            ["ip", "netns", "exec", self.namespace, *map(str, command)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=self.environment(**environment),
        )

    def run(
        self, *command: object, timeout: float = PATIENCE_SECONDS, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host to its end."""
        process = self.start(*command, **environment)
        try:
            out, error = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            out, error = process.communicate()
            raise AssertionError(f"{command} takes longer than {timeout} s:\n{out}\n{error}") from None
        return subprocess.CompletedProcess(process.args, process.returncode, out, error)

    def shardyard(self, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a `shardyard` command on this host to its end."""
        return self.run(*COMMAND, *arguments, **environment)

    def record(self) -> dict[str, Any]:
        """The record of `shardyard cluster` on this host."""
        record: dict[str, Any] = json.loads((self.home / "cluster.json").read_text())
        return record

    def processes(self) -> list[psutil.Process]:
        """All processes on this host."""
        here = os.stat(f"/run/netns/{self.namespace}").st_ino
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(OSError, psutil.Error):
                if os.stat(f"/proc/{process.pid}/ns/net").st_ino == here and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def listeners(self) -> list[Listener]:
        """Every listening TCP socket of this host, with its process.

        The kernel's table is the truth; a socket that stays in it without a process that can be named fails the test.
        """
        nobody: list[str] = []

        def look() -> list[Listener]:
            table = list(self._table())
            owners = {inode: process for process in self.processes() for inode in _sockets(process)}
            nobody[:] = [f"{address}:{port}" for address, port, inode in table if inode not in owners]
            known = [] if nobody else table
            return [Listener(address, port, owners[inode].pid, _title(owners[inode])) for address, port, inode in known]

        # A process may have ended between a look at its sockets and one at itself.
        return until(look, lambda: f"every socket has a process: {', '.join(nobody)}")

    def _table(self) -> Iterator[tuple[str, int, str]]:
        for family in ("tcp", "tcp6"):
            for line in self.run("cat", f"/proc/net/{family}").stdout.splitlines()[1:]:
                local, state, inode = (line.split()[index] for index in (1, 3, 9))
                if state == "0A":
                    yield _address(local.partition(":")[0]), int(local.partition(":")[2], 16), inode


@contextmanager
def hosts(folder: Path, *names: str) -> Iterator[list[Host]]:
    """Hosts on one bridge, from 10.77.0.1 on; processes that still run at the end are killed."""
    tag = f"sy{secrets.token_hex(3)}"
    switch = f"{tag}-switch"
    made = [Host(name, f"{tag}-{name}", f"10.77.0.{index}", folder / name) for index, name in enumerate(names, 1)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge0", "type", "bridge", "forward_delay", "0")
        _ip("-n", switch, "link", "set", "bridge0", "up")
        for index, host in enumerate(made):
            _plug_in(host, switch, f"port{index}")
        yield made
    finally:
        for host in made:
            with contextlib.suppress(OSError):
                for process in host.processes():
                    with contextlib.suppress(psutil.Error):
                        process.kill()
        for namespace in (switch, *(host.namespace for host in made)):
            subprocess.run(["ip", "netns", "delete", namespace], capture_output=True, check=False)


def _plug_in(host: Host, switch: str, port: str) -> None:
    host.home.mkdir(parents=True, exist_ok=True)
    _ip("netns", "add", host.namespace)
    _ip("-n", host.namespace, "link", "add", "eth0", "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", switch, "link", "set", port, "master", "bridge0", "up")
    _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", "eth0")
    for name in ("lo", "eth0"):
        _ip("-n", host.namespace, "link", "set", name, "up")


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"


def _address(text: str) -> str:
    """An address from the kernel's format: words in the machine's byte order."""
    words = [bytes.fromhex(text[start : start + 8])[::-1] for start in range(0, len(text), 8)]
    data = b"".join(words)
    if len(data) == 4:
        return ".".join(map(str, data))
    if data[:12] == bytes(10) + b"\xff\xff":
        return ".".join(map(str, data[12:]))
    return ":".join(f"{int.from_bytes(data[start : start + 2]):x}" for start in range(0, 16, 2))


def _sockets(process: psutil.Process) -> Iterator[str]:
    """Inodes of a process's sockets; psutil lists only those of its own network namespace."""
    folder = f"/proc/{process.pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                target = os.readlink(f"{folder}/{name}")
                if target.startswith("socket:["):
                    yield target[8:-1]


def _title(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    return line or process.name()
