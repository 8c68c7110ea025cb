"""Runs that were offline, uploaded by the real W&B library to a server on loopback: one run, each step once."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.main import run as command
from shardyard.dashboard.web.details import detail
from shardyard.tracking.files import read_jsonl
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.wandb import sync as wandb_sync
from support.dash_cases import index_of, write_run
from support.servers.wandb_stub import KEY, WandbStub, wandb_stub

STEPS = 60


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbStub]:
    with wandb_stub() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        # What other tests have left W&B waiting for, such as a server that does not answer, is not waited for.
        wandb_sync._teardown()
        yield stub
    wandb_sync._teardown()


def offline_run(runs: Path, name: str = "gpt-1", **info: Any) -> RunFolder:
    """A run of two attempts: the first was killed at step 40, the second went back to the checkpoint of step 30."""
    folder = write_run(runs, name, losses=[], tags="one", group="family", attempts=2, **info)
    steps = [*range(1, 41), *range(31, STEPS + 1)]
    with (folder / "metrics.jsonl").open("w") as file:
        for position, step in enumerate(steps):
            line = {"step": step, "time": 1000.0 + position, "train/loss": float(position)}
            file.write(json.dumps(line) + "\n")
        file.write(json.dumps({"step": STEPS, "time": 2000.0, "eval/validation/loss": 1.5}) + "\n")
    for attempt in ("20260101_000000", "20260101_000100"):
        (folder / "wandb" / f"offline-run-{attempt}-{name}").mkdir(parents=True)
    return RunFolder(folder)


def sync(runs: Path, *arguments: str) -> int:
    return command(["wandb", "sync", "--runs-dir", str(runs), *arguments])


@pytest.mark.slow
def test_restarts_become_one_run_with_each_step_once(
    stub: WandbStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = offline_run(tmp_path)
    assert sync(tmp_path, run.id, "--project", "p") == 0
    url = f"{stub.url}/me/p/runs/{run.id}"
    assert capsys.readouterr().out == f"{run.id}: {STEPS} steps sent: {url}\n"
    found = stub.run(run.id)
    assert found.steps == list(range(1, STEPS + 1))
    # Of the steps that both attempts did, the values of the later one; the evaluation beside the loss of its step.
    assert [line["train/loss"] for line in found.lines] == [float(i) for i in [*range(30), *range(40, 70)]]
    assert found.lines[-1]["eval/validation/loss"] == 1.5
    assert [line["_timestamp"] for line in found.lines[:2]] == [1000.0, 1001.0]
    assert found.exit_code == 0
    assert found.fields["tags"] == ["one"]
    assert found.fields["groupName"] == "family"
    assert found.config["optimizer"]["value"]["lr"] == 1e-5
    assert list(run.path.rglob("*.wandb")) == [], "the upload leaves no files of its own behind"


@pytest.mark.slow
def test_a_second_upload_asks_nobody_and_more_steps_are_added(
    stub: WandbStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = offline_run(tmp_path)
    assert sync(tmp_path, "--all", "--project", "p") == 0
    stub.asked.clear()
    assert sync(tmp_path, "--all", "--project", "p") == 0
    assert "nothing to upload" in capsys.readouterr().err
    assert sync(tmp_path, run.id, "--project", "p") == 0
    assert f"W&B has all {STEPS} steps" in capsys.readouterr().out
    assert stub.asked == []
    with run.metrics.open("a") as file:
        file.write(json.dumps({"step": STEPS + 1, "time": 3000.0, "train/loss": 0.5}) + "\n")
    (run.wandb / "synced.json").unlink()  # a copy of the folder without the note: the server knows by itself
    assert sync(tmp_path, run.id, "--project", "p") == 0
    assert "1 steps sent" in capsys.readouterr().out
    assert stub.run(run.id).steps == list(range(1, STEPS + 2))


@pytest.mark.slow
def test_an_upload_that_breaks_off_is_told_and_goes_on(
    stub: WandbStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = offline_run(tmp_path)
    assert sync(tmp_path, run.id, "--project", "p") == 0
    other = offline_run(tmp_path, "gpt-2")
    stub.most_lines = 0
    assert sync(tmp_path, "--all", "--project", "p") == 1
    said = capsys.readouterr().err
    assert f"W&B has confirmed {other.id} up to step" in said
    assert "Run the command again" in said
    stub.most_lines = None
    assert sync(tmp_path, "--all", "--project", "p") == 0
    assert stub.run(other.id).steps == list(range(1, STEPS + 1))


def test_the_dashboard_links_to_the_run(stub: WandbStub, tmp_path: Path) -> None:
    run = offline_run(tmp_path / "runs")
    for _ in range(2):
        assert sync(tmp_path / "runs", run.id, "--project", "p") == 0
    assert len([event for event in read_jsonl(run.events) if event["kind"] == "wandb"]) == 1
    index = index_of(tmp_path / "runs", tmp_path / "cache")
    row = index.store.reader.execute("SELECT * FROM runs").fetchone()
    assert detail(index.store.reader, row, run.path, {})["wandb"] == f"{stub.url}/me/p/runs/{run.id}"


def test_a_failed_run_is_failed_there_too(stub: WandbStub, tmp_path: Path) -> None:
    run = offline_run(tmp_path, state="failed")
    assert sync(tmp_path, run.id, "--project", "p", "--entity", "team") == 0
    assert stub.run(run.id, entity="team").exit_code == 1


def test_a_run_that_still_trains(stub: WandbStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    driver = {"host": "elsewhere", "pid": 1}
    run = offline_run(tmp_path, state="running", driver=driver)
    assert sync(tmp_path, run.id, "--project", "p") == 0
    # Its last step may be evaluated yet.
    assert stub.run(run.id).steps == list(range(1, STEPS))
    online = write_run(tmp_path, "gpt-3", state="running", driver=driver)
    assert sync(tmp_path, online.name) == 2
    assert "uploads its metrics itself" in capsys.readouterr().err


def test_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = offline_run(tmp_path)
    assert sync(tmp_path, run.id) == 2
    said = capsys.readouterr().err
    assert "`wandb login`" in said
    assert said.count("\n") == 1
    assert not (run.wandb / "synced.json").exists()


def test_a_key_that_is_refused(stub: WandbStub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stub.refuse_login = True
    run = offline_run(tmp_path)
    assert sync(tmp_path, run.id) == 1
    said = capsys.readouterr().err
    assert "rejects the key" in said
    assert KEY not in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_no_network(
    stub: WandbStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_sync, "INIT_TIMEOUT_SECONDS", 2.0)
    run = offline_run(tmp_path)
    assert sync(tmp_path, run.id) == 1
    said = capsys.readouterr().err
    assert f"{run.id} was not uploaded" in said
    assert "Check the network" in said


def test_a_dry_run_asks_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline_run(tmp_path)
    write_run(tmp_path, "never-1")
    assert sync(tmp_path, "--all", "--dry-run", "--entity", "team", "--project", "p") == 0
    assert capsys.readouterr().out == f"gpt-1: {STEPS} steps, 2 offline attempts → team/p\n"


def test_nothing_to_send(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path, "empty-1", losses=[])
    assert sync(tmp_path, "empty-1") == 2
    assert "has no metrics yet" in capsys.readouterr().err
    assert sync(tmp_path) == 2
    assert sync(tmp_path, "--all", "empty-1") == 2
    assert sync(tmp_path, "--all") == 0


def test_wandb_modes_of_the_environment(
    stub: WandbStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = offline_run(tmp_path)
    monkeypatch.setenv("WANDB_DISABLED", "true")
    assert sync(tmp_path, run.id) == 2
    assert "WANDB_DISABLED" in capsys.readouterr().err
    monkeypatch.delenv("WANDB_DISABLED")
    # A node without network trains with this set; the upload is asked for.
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "q")
    assert sync(tmp_path, run.id) == 0
    assert stub.run(run.id, project="q").steps == list(range(1, STEPS + 1))
    assert os.environ["WANDB_MODE"] == "offline"
