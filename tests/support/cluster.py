"""A Ray head on loopback, as on a host of its own."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


@contextmanager
def ray_head(folder: Path) -> Iterator[dict[str, str]]:
    """Two CPU cores and a token; yields the environment of a client, and ends the head afterwards."""
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    address = f"127.0.0.1:{free_port()}"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    head = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}"]
    options = ["--num-cpus=2", "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats"]
    with (folder / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*head, *options], env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield {**environment, "RAY_ADDRESS": address}
        finally:
            process.terminate()
            process.wait(timeout=60)
