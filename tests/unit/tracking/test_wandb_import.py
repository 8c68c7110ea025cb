"""Offline runs that the real W&B library wrote, as run folders; and files that are none, or not whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.main import run as command
from shardyard.errors import DataError
from shardyard.tracking.run.comparison import compare
from shardyard.tracking.run.folder import RunFolder, read_metrics
from shardyard.tracking.run.summary import summarize
from shardyard.tracking.wandb import importing
from shardyard.tracking.wandb.importing import read_file, read_runs, wandb_files, write_run
from shardyard.tracking.wandb.records import BLOCK_BYTES
from support.dash_cases import served
from support.waiting import PATIENCE_SECONDS, next_second

pytestmark = pytest.mark.slow

# As another tool would: names of its own, nested values, a text, an image's place, numbers that are none.
WRITER = """
import os, sys
import wandb
folder, run_id, first, last, explicit, code = sys.argv[1:]
run = wandb.init(project="vision", id=run_id, name="ResNet baseline", dir=folder, mode="offline", resume="allow",
    config={"lr": 3e-4, "model": {"depth": 18}, "aug": ["flip", "crop"]}, tags=["a", "b"], group="grid", notes="why",
    settings=wandb.Settings(silent=True))
print("hello from the run")
for step in range(int(first), int(last)):
    value = float("nan") if step == 3 else 3.0 / (step + 1)
    line = {"loss": value, "val_loss": 2.0, "nested": {"depth": step}, "text": "words", "big": "x" * 9000, "ok": True}
    run.log(line, **({"step": step} if explicit == "1" else {}))
run.summary["best"] = 0.5
if code == "kill":
    run.log({"loss": 0.0})
    import time
    time.sleep(1)
    os._exit(9)
run.finish(exit_code=int(code))
"""


def write(folder: Path, run_id: str = "abc", first: int = 0, last: int = 6, explicit: int = 1, code: str = "0") -> None:
    folder.mkdir(exist_ok=True)
    arguments = [str(folder), run_id, str(first), str(last), str(explicit), code]
    done = subprocess.run(
        [sys.executable, "-c", WRITER, *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert done.returncode == (9 if code == "kill" else 0), done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run `abc`, and `two` of two attempts: the second from step 4 on, the third without steps of its own."""
    folder = tmp_path_factory.mktemp("other-tool")
    write(folder / "one")
    write(folder / "two", "two", 0, 6, code="1")
    next_second()
    write(folder / "two", "two", 4, 9)
    return folder


def import_all(runs: Path, *paths: Path | str) -> int:
    return command(["wandb", "import", *map(str, paths), "--runs-dir", str(runs)])


def test_a_run_of_another_tool_is_a_run_here(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs"
    assert import_all(runs, written / "one" / "wandb") == 0
    assert capsys.readouterr().out == "ResNet-baseline-abc: 6 steps, finished\n"
    run = RunFolder.open(runs, "ResNet")
    steps = read_metrics(run.metrics)
    assert [line["step"] for line in steps] == list(range(6))
    assert steps[0]["train/loss"] == 3.0
    assert steps[3]["train/loss"] != steps[3]["train/loss"], "NaN stays one"
    assert steps[5]["eval/validation/loss"] == 2.0
    assert steps[5]["nested.depth"] == 5
    assert {"text", "big", "ok"}.isdisjoint(steps[5])
    assert any(name.startswith("system/") for line in steps for name in line)
    summary = summarize(run)
    assert (summary.state, summary.step, summary.loss, summary.eval_loss) == ("finished", 5, 0.5, 2.0)
    assert "hello from the run" in (run.logs / "driver.log").read_text()
    info = run.info()
    assert info.imported["summary"]["best"] == 0.5
    assert info.imported["notes"] == "why"
    assert (info.started or "") < (info.ended or "")
    assert command(["runs", "--runs-dir", str(runs)]) == 0
    assert "ResNet-baseline-abc" in capsys.readouterr().out
    assert command(["watch", "ResNet", "--runs-dir", str(runs)]) == 0
    assert "5/5   0.5000" in capsys.readouterr().out


def test_the_dashboard_shows_it(written: Path, tmp_path: Path) -> None:
    import_all(tmp_path / "runs", written / "one", written / "two")
    with served(tmp_path / "runs", tmp_path / "cache") as client:
        found = client.get("/api/runs", params={"query": "recipe.model.depth = 18 and tag = a and loss < 1"}).json()
        assert {row["name"] for row in found["runs"]} == {"ResNet-baseline"}
        assert found["total"] == 2
        run = client.get(f"/api/runs/{found['runs'][0]['id']}").json()
        assert "train/loss" in run["metrics"]["train"]
        recipe = client.get(f"/api/runs/{found['runs'][0]['id']}/recipe").json()
        assert "lr: 0.0003" in recipe["given"]
        asked = {"runs": "ResNet-baseline-abc", "metrics": "train/loss"}
        series = client.get("/api/series", params=asked).json()["series"]
        assert len(series[0]["x"]) == 6


def test_attempts_are_one_run(written: Path, tmp_path: Path) -> None:
    [found] = read_runs([written / "two"])
    run = write_run(found, tmp_path).run
    assert run.info().attempts == 2
    assert summarize(run).state == "finished", "the last attempt says how it ended"
    steps = read_metrics(run.metrics)
    assert [line["step"] for line in steps] == list(range(9))
    assert found.problems == []


def test_an_attempt_without_steps_of_its_own_is_numbered_on(tmp_path: Path) -> None:
    write(tmp_path / "w", "auto", 0, 3, explicit=0)
    next_second()
    write(tmp_path / "w", "auto", 0, 2, explicit=0)
    [found] = read_runs([tmp_path / "w"])
    run = write_run(found, tmp_path / "runs").run
    assert [line["step"] for line in read_metrics(run.metrics)] == list(range(5))
    assert "numbered from 3" in found.problems[0]


def test_a_killed_run_gives_what_it_had_written(tmp_path: Path) -> None:
    write(tmp_path / "w", "dead", 0, 4, code="kill")
    [found] = read_runs([tmp_path / "w"])
    assert found.state == "interrupted"
    assert summarize(write_run(found, tmp_path / "runs").run).state == "interrupted"


def test_it_is_imported_once(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert import_all(tmp_path, written / "one") == 0
    (tmp_path / "ResNet-baseline-abc" / "metrics.jsonl").write_text("")
    assert import_all(tmp_path, written / "one") == 0
    assert "exists already" in capsys.readouterr().out
    assert (tmp_path / "ResNet-baseline-abc" / "metrics.jsonl").read_text() == ""
    assert import_all(tmp_path, written / "one", "--again") == 0
    assert len(read_metrics(tmp_path / "ResNet-baseline-abc" / "metrics.jsonl")) == 6
    assert [path.name for path in tmp_path.iterdir()] == ["ResNet-baseline-abc"]


def test_a_run_of_ones_own_is_never_replaced(written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = tmp_path / "ResNet-baseline-abc"
    own.mkdir()
    (own / "run.json").write_text(json.dumps({"id": own.name, "state": "finished"}))
    assert import_all(tmp_path, written / "one", "--again") == 1
    assert "was not imported from W&B" in capsys.readouterr().err
    assert [path.name for path in own.iterdir()] == ["run.json"]


def test_imported_runs_are_compared(written: Path, tmp_path: Path) -> None:
    runs = [write_run(found, tmp_path).run for found in read_runs([written / "one", written / "two"])]
    assert len(runs) == 2
    assert compare(runs).metrics["train/loss"][0] == 0.5


def copied(written: Path, tmp_path: Path, change: Any) -> Path:
    [source] = wandb_files(written / "one")
    path = tmp_path / source.name
    path.write_bytes(change(source.read_bytes()))
    return path


def test_a_file_that_is_cut_off_gives_what_is_whole(written: Path, tmp_path: Path) -> None:
    # The text of 9000 characters makes the file longer than a block, so that records have several fragments.
    path = copied(written, tmp_path, lambda data: data[: BLOCK_BYTES + 20])
    found = read_file(path)
    assert 1 <= len([line for line in found.steps if "loss" in line]) < 6
    assert "cut off" in found.problems[0]


def test_a_damaged_file_gives_what_is_before_the_damage(written: Path, tmp_path: Path) -> None:
    path = copied(written, tmp_path, lambda data: data[:30_000] + bytes([data[30_000] ^ 1]) + data[30_001:])
    found = read_file(path)
    assert "a checksum is wrong" in found.problems[0]
    assert len([line for line in found.steps if "loss" in line]) < 6


@pytest.mark.parametrize("content", [b"", b"{}", b"PK\x03\x04" * 100, b":W&B\xe1\xbe\x07rest"])
def test_what_is_no_file_of_wandb(tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.wandb").write_bytes(content)
    assert import_all(tmp_path / "runs", tmp_path / "x.wandb") == 1
    assert "is not a W&B file" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_file_without_a_run(written: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no run id"):
        read_file(copied(written, tmp_path, lambda data: data[:60]))
    with pytest.raises(DataError, match=r"has no \.wandb file"):
        wandb_files(Path(__file__).parent)
    with pytest.raises(DataError, match="is not there"):
        wandb_files(tmp_path / "nothing")


def test_a_full_disk_leaves_nothing_behind(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(importing, "_as_yaml", full)
    assert import_all(tmp_path / "runs", written / "one") == 1
    assert "No space left" in capsys.readouterr().err
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_hostile_name_is_no_path(written: Path, tmp_path: Path) -> None:
    [found] = read_runs([written / "one"])
    found.run_id, found.name = "../../../etc", "../..//x\0"
    run = write_run(found, tmp_path / "runs").run
    assert run.path.parent == (tmp_path / "runs").resolve()
    shutil.rmtree(run.path)
