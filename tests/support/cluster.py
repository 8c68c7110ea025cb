"""A Ray head on loopback, as on a separate host."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.waiting import PATIENCE_SECONDS, until

# Otherwise Ray waits half a minute for running work when its head is stopped.
AT_ONCE = {"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
# Below those of the kernel (from 32768), above those of Ray's workers (10002 to 19999).
PORTS = range(20_000, 32_000)
RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    """A TCP port that nobody listens on, and that no other process of these tests gets while this one lives.

    It is neither one that the kernel gives to connections nor one of Ray's workers, which may take it in the meantime.
    """
    locks = Path(tempfile.gettempdir()) / f"shardyard-test-ports-{os.getuid()}"
    locks.mkdir(exist_ok=True)
    for port in random.sample(PORTS, len(PORTS)):
        descriptor = os.open(locks / str(port), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as server:
                server.bind(("", port))
        except OSError:
            os.close(descriptor)
        else:
            return port
    raise AssertionError("every port of the tests is taken")


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens on a port of loopback; fails if `process` ends before."""

    def listens() -> bool:
        assert process.poll() is None, f"the process that should listen on port {port} has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
        return False

    until(listens, f"something listens on port {port}")


def wait_until_started(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until `ray start` reports that its node runs; fails with its log if it ends before."""

    def said() -> str:
        return log.read_text(errors="replace")

    def started() -> bool:
        assert process.poll() is None, said()
        return "Ray runtime started" in said()

    until(started, said)


@contextmanager
def ray_head(folder: Path, *, dashboard: bool = False, **variables: str) -> Iterator[dict[str, str]]:
    """A head with two CPU cores and a token; yields the environment of a client, and stops the head afterwards.

    With `dashboard` there is a Jobs API, which the environment names; `variables` are for the head.
    """
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    address = f"127.0.0.1:{free_port()}"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    head = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}"]
    options = ["--num-cpus=2", "--num-gpus=0", "--disable-usage-stats", f"--include-dashboard={dashboard}".lower()]
    client = {**environment, "RAY_ADDRESS": address}
    if dashboard:
        port = free_port()
        # Two Ray clusters on one host would use the same port for the agent that starts jobs.
        options += [f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
        options += [f"--dashboard-agent-listen-port={free_port()}"]
        client["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    python = str(Path(sys.executable).parent)
    path = {"PATH": f"{python}{os.pathsep}{os.environ['PATH']}"}
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*head, *options],
            env={**os.environ, **path, **AT_ONCE, **environment, **variables},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            wait_until_started(process, folder / "head.log")
            if dashboard:
                wait_for_port(port, process)
            yield client
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE_SECONDS)
