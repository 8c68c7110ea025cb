"""The command `shardyard dashboard`: what it says when it cannot start, and that it starts, answers and ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from shardyard.cli.main import run
from shardyard.dashboard.web.addresses import bound
from support.dash_cases import write_run
from support.waiting import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(["dashboard", "--no-browser", *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("Error: ")
    assert "Traceback" not in said
    return said


def test_a_busy_port(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with bound("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        assert "--port 0" in refused(capsys, "--port", port, "--runs-dir", str(tmp_path))


def test_a_runs_folder_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "Give another --runs-dir" in refused(capsys, "--port", "0", "--runs-dir", str(tmp_path / "file"))


def test_an_unwritable_home(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").write_text("")
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "home"))
    said = refused(capsys, "--port", "0", "--runs-dir", str(tmp_path))
    assert "SHARDYARD_CACHE" in said
    assert str(tmp_path / "home") in said


def test_a_token_file_that_others_can_read(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("x" * 40)
    token.chmod(0o644)
    said = refused(capsys, "--port", "0", "--runs-dir", str(tmp_path), "--token-file", str(token))
    assert "chmod 600" in said
    assert "x" * 40 not in said


def test_a_runs_folder_that_is_not_there_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardyard.dashboard.web.server.serve", lambda app, listening: listening.close())
    assert run(["dashboard", "--no-browser", "--port", "0", "--runs-dir", str(tmp_path / "none")]) == 0
    assert f"{tmp_path}/none (does not exist yet; the first launch creates it)" in capsys.readouterr().out
    assert run(["dashboard", "--no-browser", "--port", "0", "--runs-dir", str(tmp_path)]) == 0
    assert "does not exist yet" not in capsys.readouterr().out


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("shardyard.extras.find_spec", lambda name: None if name == "plotly" else object())
    assert "the dashboard needs plotly" in refused(capsys)


@pytest.mark.slow
def test_it_starts_answers_and_ends(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "one-1")
    arguments = ["dashboard", "--runs-dir", str(tmp_path / "runs"), "--port", "0", "--no-browser"]
    process = subprocess.Popen(
        [sys.executable, "-m", "shardyard.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.fullmatch(r"dashboard    (http://127\.0\.0\.1:\d+/)\?token=(\S+)\n", line)
        assert found is not None, line
        request = urllib.request.Request(f"{found[1]}api/runs", headers={"Authorization": f"Bearer {found[2]}"})
        with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as answer:
            assert answer.status == 200
            assert "server" not in {name.lower() for name in answer.headers}
        # A token is no argument, and no file keeps it.
        assert found[2] not in Path(f"/proc/{process.pid}/cmdline").read_text()
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors
    assert found[2] not in output + errors
    kept = [
        path for path in (tmp_path / "cache").rglob("*") if path.is_file() and found[2].encode() in path.read_bytes()
    ]
    assert kept == []
