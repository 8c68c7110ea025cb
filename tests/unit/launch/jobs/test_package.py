"""The files that travel with a job."""

from __future__ import annotations

import io
import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from shardyard.errors import UsageError
from shardyard.launch.jobs.package import checked_files, package
from shardyard.launch.jobs.secrets import carried, pack, to_carry


def _names(content: bytes) -> list[str]:
    return sorted(zipfile.ZipFile(io.BytesIO(content)).namelist())


def test_without_a_folder_only_the_job_travels() -> None:
    name, content = package("{}", None, None)
    assert _names(content) == ["job.json"]
    assert name.startswith("_ray_pkg_")
    assert name.endswith(".zip")
    assert package('{"a": 1}', None, None)[0] != name


def test_a_folder_travels_without_caches_and_never_as_the_job(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "corpus.jsonl").write_text("{}")
    (tmp_path / "job.json").write_text("somebody else's")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("")
    _, content = package("{}", checked_files(tmp_path), tmp_path)
    assert _names(content) == ["data/corpus.jsonl", "job.json"]
    assert zipfile.ZipFile(io.BytesIO(content)).read("job.json") == b"{}"


def test_what_git_ignores_stays(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("*.bin\n")
    (tmp_path / "kept.txt").write_text("")
    (tmp_path / "weights.bin").write_text("")
    assert [path.name for path, _ in checked_files(tmp_path).files] == [".gitignore", "kept.txt"]


def test_too_large_a_folder_names_its_largest_entries(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    for name, size in (("big/a", 600), ("big/b", 500), ("middle", 300), ("small", 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    with pytest.raises(UsageError, match=r"holds 1\.4 KiB.*limit is 1000 B.*big/ 1\.1 KiB, middle 300 B, small 1 B"):
        checked_files(tmp_path, limit=1000)


def test_what_is_too_large_when_packed_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(100_000))
    package("{}", checked_files(tmp_path), tmp_path, limit=10_000)
    (tmp_path / "noise").write_bytes(os.urandom(20_000))
    with pytest.raises(UsageError, match=r"when packed, and Ray's limit is 9\.8 KiB\. Largest entries: zeros"):
        package("{}", checked_files(tmp_path), tmp_path, limit=10_000)


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        checked_files(tmp_path / "nowhere")


def test_variables_that_travel_and_those_that_stay() -> None:
    environment = {
        "WANDB_API_KEY": "secret",
        "WANDB_DIR": "/home/me",
        "HF_TOKEN": "hf",
        "HOME": "/home/me",
        "WANDB_ENTITY": "",
        "PATH": "/bin",
    }
    assert to_carry(environment) == {"HF_TOKEN": "hf", "WANDB_API_KEY": "secret"}
    assert b"secret" in pack(to_carry(environment))


def test_the_driver_hands_on_only_what_came_with_the_job() -> None:
    environment = {"SHARDYARD_CARRIED": "HF_TOKEN GONE", "HF_TOKEN": "hf", "WANDB_API_KEY": "the head's own"}
    assert carried(environment) == {"HF_TOKEN": "hf"}
    assert carried({"HF_TOKEN": "hf"}) == {}
