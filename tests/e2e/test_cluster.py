"""Launching on a Ray cluster that is there already."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.cli import Command, write_recipe
from support.tiny import write_corpus

pytestmark = pytest.mark.slow

RAY = str(Path(sys.executable).with_name("ray"))


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port: int = server.getsockname()[1]
        return port


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head on loopback with a token, started by hand as on a host of its own; yields the environment of a client."""
    token = tmp_path / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    address = f"127.0.0.1:{free_port()}"
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    head = [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}"]
    options = ["--num-cpus=2", "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats"]
    with (tmp_path / "head.log").open("w") as log:
        process = subprocess.Popen(
            [*head, *options], env={**os.environ, **environment}, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield {**environment, "RAY_ADDRESS": address}
        finally:
            process.terminate()
            process.wait(timeout=60)


def test_a_launch_uses_the_cluster_that_is_named(cluster: dict[str, str], tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_corpus(tmp_path), train={"steps": 10})
    with Command("launch", recipe, runs=tmp_path / "runs", **cluster) as command:
        code, output = command.finish()
        assert not [process for process in command.descendants() if "gcs_server" in process.name()]
    assert code == 0, output
    assert command.info()["state"] == "finished"
    too_many = ["-s", "cluster.workers=4"]
    with Command("launch", recipe, *too_many, runs=tmp_path / "more", **cluster) as command:
        code, output = command.finish()
    assert code == 1
    assert "4 CPU cores, the cluster has 2" in output, output
    assert "Traceback" not in output


def test_a_cluster_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_corpus(tmp_path), train={"steps": 10})
    with Command("launch", recipe, runs=tmp_path / "runs", RAY_ADDRESS=f"127.0.0.1:{free_port()}") as command:
        code, output = command.finish()
    assert code == 1
    assert "cannot be used" in output, output
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()
