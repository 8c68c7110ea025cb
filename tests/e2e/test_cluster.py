"""Launching on a Ray cluster that is there already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.cli import Command, write_recipe
from support.cluster import free_port, ray_head
from support.hold import SLOW
from support.tiny import write_corpus
from support.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[dict[str, str]]:
    with ray_head(tmp_path) as environment:
        yield environment


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
    assert "needs 4 CPU cores; 2 in the cluster" in output, output
    assert "Traceback" not in output


def test_a_driver_that_is_killed_leaves_no_rank_and_no_reservation(cluster: dict[str, str], tmp_path: Path) -> None:
    """Ranks are processes of the cluster, not of the driver; the next run gets what they had."""
    recipe = write_recipe(tmp_path, write_corpus(tmp_path), train={"steps": 100000})
    with Command("launch", recipe, "-s", SLOW, runs=tmp_path / "runs", **cluster) as command:
        command.wait_for_step(2)
        pids = {pid for place in command.info()["placement"] for pid in place["pids"]}
        assert len(pids) == 2
        assert all(psutil.pid_exists(pid) for pid in pids)
        command.process.kill()
        until(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the ranks have ended")
    with Command("launch", recipe, "--try", 2, runs=tmp_path / "next", **cluster) as command:
        code, output = command.finish()
    assert code == 0, output


def test_a_cluster_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, write_corpus(tmp_path), train={"steps": 10})
    with Command("launch", recipe, runs=tmp_path / "runs", RAY_ADDRESS=f"127.0.0.1:{free_port()}") as command:
        code, output = command.finish()
    assert code == 1
    assert "cannot be used" in output, output
    assert "Traceback" not in output
    assert not (tmp_path / "runs").exists()
