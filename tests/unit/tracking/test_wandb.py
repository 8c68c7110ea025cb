"""W&B mirrors the run folder and never costs anything: real offline runs, and servers and disks that fail."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardyard.recipe.schema import Wandb
from shardyard.tracking.files import read_jsonl
from shardyard.tracking.metrics.record import StepRecord
from shardyard.tracking.metrics.tracker import Tracker
from shardyard.tracking.run.events import CheckpointSaved, Notice
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.wandb.mirror import WandbMirror, has_key, resolve_mode
from shardyard.tracking.wandb.records import Records
from support.waiting import PATIENCE_SECONDS, next_second

METRICS = {f"perf/metric_{index}": 1.2345 * index for index in range(12)}
SECRET = "5" * 40


@pytest.fixture(autouse=True)
def _no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import os

    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "gpt", "a", "b")


def _mirror(run: RunFolder, **options: Any) -> WandbMirror:
    return WandbMirror(Wandb(project="p"), run.id, "gpt", ["tag"], {"train": {"steps": 3}}, run.path, **options)


def _seconds(tracker: Tracker, count: int = 300) -> float:
    durations = []
    for step in range(count):
        record = StepRecord(step, METRICS)
        begin = time.perf_counter()
        tracker.record(record)
        durations.append(time.perf_counter() - begin)
    # A machine that does other work makes many of them longer and none shorter.
    return sorted(durations)[count // 10]


def test_a_record_costs_microseconds(run: RunFolder) -> None:
    with Tracker(run) as tracker:
        assert _seconds(tracker) < 100e-6
    assert run.info().step == 299
    assert len(read_jsonl(run.metrics)) == 300


def test_the_tracker_writes_events_and_samples(run: RunFolder) -> None:
    with Tracker(run) as tracker:
        tracker.event(CheckpointSaved(step=3, path="checkpoints/step-00000003"))
        tracker.sample(3, "Once", " upon")
    [event] = read_jsonl(run.events)
    assert (event["kind"], event["step"]) == ("checkpoint", 3)
    [sample] = read_jsonl(run.samples, numbers=False)
    assert (sample["prompt"], sample["text"]) == ("Once", " upon")


def test_records_of_a_full_disk_come_late_and_the_run_says_so(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with Tracker(run) as tracker:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            tracker.record(StepRecord(1, METRICS))
            tracker.record(StepRecord(2, METRICS))
            assert tracker.lost == 2
        tracker.record(StepRecord(3, METRICS))
    assert [line["step"] for line in read_jsonl(run.metrics)] == [1, 2, 3]
    (event,) = read_jsonl(run.events)
    assert event["text"] == "metrics.jsonl could not be written for a while; 2 lines came late"


def test_a_run_folder_that_vanishes_or_is_full_fails_no_run(run: RunFolder) -> None:
    run.metrics.symlink_to("/dev/full")
    tracker = Tracker(run)
    tracker.record(StepRecord(1, METRICS))
    tracker.event(Notice(text="x"))
    assert tracker.lost == 1
    import shutil

    shutil.rmtree(run.path)
    tracker.sample(1, "a", "b")
    tracker.close()
    assert tracker.lost == 2


_ATTEMPT = """
import os, sys
from pathlib import Path
from shardyard.recipe.schema import Wandb
from shardyard.tracking.wandb.mirror import WandbMirror
from shardyard.tracking.wandb.quirks import leave_wandb
mirror = WandbMirror(Wandb(project="p"), "run-id", "gpt", ["tag"], {"train": {"steps": 3}}, Path(sys.argv[1]))
mirror.start()
for step in range(3):
    mirror.log(step, {"train/loss": 1.0})
mirror.finish(60)
assert not mirror.problems, mirror.problems
print(mirror.status().mode, mirror.status().place, flush=True)
leave_wandb()
os._exit(0)  # as ranks end: by a signal
"""


@pytest.mark.slow
def test_an_offline_run_and_its_resumption_are_one_run_and_leave_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    for attempt in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", _ATTEMPT, str(tmp_path)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )
        mode, place = done.stdout.split()
        assert mode == "offline"
        assert list(temporary.iterdir()) == []
        assert Path(place).is_dir()
        assert done.stderr == "", "W&B says nothing of its own"
        directories = list((tmp_path / "wandb").glob("offline-run-*"))
        assert len(directories) == attempt
        next_second()
    for directory in directories:
        assert [file.name for file in directory.glob("*.wandb")] == ["run-run-id.wandb"]
        data = next(directory.glob("*.wandb")).read_bytes()
        assert b"train/loss" in data
        assert b"tag" in data


_OUTCOMES = """
import sys
from pathlib import Path
from shardyard.recipe.schema import Wandb
from shardyard.tracking.wandb.mirror import WandbMirror
for outcome in sys.argv[2:]:
    mirror = WandbMirror(Wandb(project="p"), outcome, "gpt", [], {}, Path(sys.argv[1]) / outcome)
    mirror.start()
    mirror.log(0, {"train/loss": 1.0})
    mirror.finish(60, outcome)
    assert not mirror.problems, mirror.problems
"""
_ENDS = {"finished": 0, "paused": 0, "failed": 1, "interrupted": 130, "preempted": 143, "timeout": 124}


@pytest.mark.slow
def test_wandb_is_told_how_a_run_ended(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _OUTCOMES, str(tmp_path), *_ENDS], timeout=240, check=True)
    for outcome, code in _ENDS.items():
        [file] = (tmp_path / outcome).glob("wandb/offline-run-*/*.wandb")
        records = list(Records(file))
        assert [record.exit.exit_code for record in records if record.HasField("exit")] == [code], outcome
        assert any(record.HasField("preempting") for record in records) == (outcome == "preempted"), outcome


@pytest.mark.parametrize("kind", ["file", "proc"])
def test_a_folder_that_cannot_be_written_means_no_wandb_and_one_sentence(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "file":
        run.wandb.write_text("in the way")
    else:
        monkeypatch.setenv("WANDB_DIR", "/proc/wandb-goes-here")
    mirror = _mirror(run)
    with Tracker(run, mirror) as tracker:
        for step in range(3):
            tracker.record(StepRecord(step, METRICS))
    assert mirror.status().mode == "disabled"
    [problem] = mirror.problems
    assert "cannot be written" in problem
    assert problem.endswith("continuing without.")
    assert len(read_jsonl(run.metrics)) == 3
    assert [event["text"] for event in read_jsonl(run.events) if event["kind"] == "notice"] == [problem]


def test_a_slow_wandb_costs_no_step_and_loses_the_oldest(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    release, logged = threading.Event(), []

    class Run:
        dir = "/x/files"

        def log(self, metrics: dict[str, float], step: int) -> None:
            logged.append(step)

        def finish(self, exit_code: int) -> None:
            assert exit_code == 0

    def slow_init(**_: object) -> Run:
        release.wait()
        return Run()

    monkeypatch.setattr(wandb, "init", slow_init)
    mirror = _mirror(run, queue_records=50)
    tracker = Tracker(run, mirror)
    assert _seconds(tracker, 300) < 200e-6
    assert mirror.status().mode == "starting"
    assert mirror.dropped == 250
    release.set()
    tracker.close()
    assert logged == list(range(250, 300))
    [problem] = mirror.problems
    assert problem.startswith("W&B: 250 records were dropped")


def test_a_wandb_that_never_answers_is_given_up_at_the_end(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    given_up = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **_: given_up.wait())
    mirror = _mirror(run)
    mirror.start()
    mirror.finish(0.3)
    assert "did not finish within" in mirror.problems[0]
    given_up.set()


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.slow
def test_an_unreachable_server_means_offline_and_no_secret_in_what_is_said(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, silent_server: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_BASE_URL", silent_server)
    mirror = _mirror(run, init_timeout_seconds=2)
    with Tracker(run, mirror) as tracker:
        tracker.record(StepRecord(1, METRICS))
    assert mirror.status().mode == "offline"
    assert Path(mirror.status().place or "").is_dir()
    [problem] = mirror.problems
    assert "continuing offline" in problem
    assert "wandb sync" in problem
    for file in run.path.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


def test_what_wandb_raises_is_said_without_the_key(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    monkeypatch.setenv("WANDB_MODE", "offline")

    def broken(**_: object) -> None:
        raise SystemExit(f"bad key {SECRET}")

    monkeypatch.setattr(wandb, "init", broken)
    mirror = _mirror(run)
    mirror.start()
    mirror.finish(10)
    assert mirror.problems == ["W&B: bad key [hidden]; continuing without."]


def test_the_mode_is_that_of_the_variable_then_the_recipe_then_the_key(tmp_path: Path) -> None:
    nothing = {"NETRC": str(tmp_path / "netrc"), "WANDB_CONFIG_DIR": str(tmp_path)}
    assert resolve_mode(Wandb(), nothing) == "offline"
    assert resolve_mode(Wandb(), {**nothing, "WANDB_API_KEY": SECRET}) == "online"
    assert resolve_mode(Wandb(mode="disabled"), {**nothing, "WANDB_API_KEY": SECRET}) == "disabled"
    assert resolve_mode(Wandb(mode="disabled"), {**nothing, "WANDB_MODE": "dryrun"}) == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_key(nothing)
    assert not has_key({**nothing, "WANDB_BASE_URL": "https://wandb.example.org"})
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert not has_key(nothing)
    (tmp_path / "settings").write_text("[default]\napi_key = secret\n")
    assert has_key(nothing)
