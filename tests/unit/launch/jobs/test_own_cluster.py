"""The cluster that a job runs in, found among the processes above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.launch.jobs.own_cluster import own_address


def write_process(proc: Path, pid: int, parent: int, *command: str, name: str = "sh") -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} {pid} {pid} 0 -1")
    (folder / "cmdline").write_bytes(b"".join(part.encode() + b"\0" for part in command))


@pytest.mark.parametrize(("address", "expected"), [("10.0.0.1:6379", "10.0.0.1:6379"), ("", None)])
def test_the_raylet_above_names_its_cluster(tmp_path: Path, address: str, expected: str | None) -> None:
    write_process(tmp_path, 40, 30, "python", "-m", "shardyard.launch.jobs.entry", "job.json")
    write_process(tmp_path, 30, 20, "sh", "-c", "python …")
    write_process(tmp_path, 20, 10, "ray::JobSupervisor", name="ray::Job (a) b")
    write_process(tmp_path, 10, 1, "raylet", "--raylet_socket_name=/tmp/ray", f"--gcs-address={address}")
    assert own_address(40, tmp_path) == expected


def test_without_a_raylet_above_there_is_no_cluster(tmp_path: Path) -> None:
    write_process(tmp_path, 40, 1, "python")
    write_process(tmp_path, 1, 0, "init")
    assert own_address(40, tmp_path) is None
