"""What lies in a folder of checkpoints, what is wrong with it, and what may be removed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from shardyard.cli.main import app
from shardyard.engine.checkpoint import blocks, files
from shardyard.engine.checkpoint.blocks import written
from shardyard.engine.checkpoint.listing import listed, problems
from shardyard.errors import CheckpointError, UsageError
from shardyard.tracking.run.folder import RunFolder

CONTENTS = {"rank-00000.safetensors": bytes(range(250)), "data.json": b"{}"}


def write(checkpoints: Path, step: int) -> Path:
    partial = files.partial_folder(checkpoints, step)
    partial.mkdir(parents=True)
    entries = {name: written(partial / name, [memoryview(data)]) for name, data in CONTENTS.items()}
    return files.commit(checkpoints, step, entries, world_size=2, zero_stage=1)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 100)
    folder = RunFolder.create(tmp_path, "tiny", "", "")
    for step in (10, 20, 30):
        write(folder.checkpoints, step)
    files.mark(files.committed_folder(folder.checkpoints, 30), good=False, why="it exploded")
    files.set_aside(write(folder.checkpoints, 5))
    files.put_by(write(folder.checkpoints, 40))
    return folder


def call(*words: str) -> None:
    typer.main.get_command(app).main(args=["checkpoint", *words], standalone_mode=False)


def test_every_checkpoint_is_listed_with_its_state(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (files.committed_folder(run.checkpoints, 10) / "manifest.json").write_text("{")
    rows = listed(run.checkpoints)
    assert [(row.step, row.state) for row in rows] == [
        (5, "damaged"),
        (10, "unreadable"),
        (20, "good"),
        (30, "spoiled"),
        (40, "aside"),
    ]
    assert (rows[2].ranks, rows[2].zero_stage, rows[2].layout) == (2, 1, "one file a rank")
    assert rows[3].problem == "it exploded"
    call("ls", str(run.path))
    assert capsys.readouterr().out.splitlines()[2].startswith("step-00000020\tgood\t")
    call("ls", str(run.path), "--json")
    assert [one["state"] for one in json.loads(capsys.readouterr().out)] == [row.state for row in rows]
    call("ls", str(run.path), "-q")
    assert capsys.readouterr().out.splitlines()[0] == "damaged-step-00000005"


def test_verify_names_the_file_and_the_bytes(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    call("verify", str(run.path))
    assert capsys.readouterr().out.splitlines() == [f"step-000000{step}\twhole" for step in (10, 20, 30)]
    folder = files.committed_folder(run.checkpoints, 20)
    shard = folder / "rank-00000.safetensors"
    data = bytearray(CONTENTS[shard.name])
    data[120] ^= 1
    shard.write_bytes(data)
    (folder / "data.json").unlink()
    (folder / "more").write_bytes(b"")
    assert problems(folder) == [
        "data.json is missing",
        "rank-00000.safetensors differs in bytes 100 to 199",
        "more is not in the manifest",
    ]
    shard.write_bytes(data[:7])
    assert problems(folder)[1] == "rank-00000.safetensors has 7 bytes instead of 250"
    call("verify", str(run.path), "--step", "10")
    with pytest.raises(CheckpointError, match="step-00000020: damaged"):
        call("verify", str(run.path))
    with pytest.raises(UsageError, match="no checkpoint of step 7"):
        call("verify", str(run.path), "--step", "7")


def test_the_last_good_checkpoint_stays_unless_forced(run: RunFolder) -> None:
    names = [row.path.name for row in listed(run.checkpoints)]
    with pytest.raises(UsageError, match="--yes"):
        call("rm", str(run.path), "10")
    with pytest.raises(UsageError, match=r"7 is no checkpoint of this run; there are: .*step-00000020"):
        call("rm", str(run.path), "7", "--yes")
    # That of step 30 is no good one.
    with pytest.raises(UsageError, match=r"step-00000020 is the last good checkpoint.*--force"):
        call("rm", str(run.path), "10", "20", "--yes")
    assert [row.path.name for row in listed(run.checkpoints)] == names, "nothing was removed by a refused call"
    call("rm", str(run.path), "10", "damaged", "aside-step-00000040", "--yes")
    assert [row.step for row in listed(run.checkpoints)] == [20, 30]
    call("rm", str(run.path), "20", "--yes", "--force")
    assert [row.step for row in listed(run.checkpoints)] == [30]
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-00000030"]


def test_rotation_keeps_the_newest_damaged_ones_and_removes_files_in_the_background(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        write(tmp_path, step)
    for step in (1, 2):
        files.set_aside(files.committed_folder(tmp_path, step))
    for number in range(30):
        (tmp_path / "step-00000003" / f"shard {number}").write_bytes(b"")
    removed = files.rotate(tmp_path, 2, keep_damaged=1, wait=False)
    assert [path.name for path in removed] == ["step-00000003", "damaged-step-00000001"]
    files.wait_for_removals()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "damaged-step-00000002",
        "step-00000004",
        "step-00000005",
    ]
    assert files.rotate(tmp_path, 2) == [], "damaged ones stay where no policy is named"


def test_what_was_being_removed_when_a_process_died_is_removed_by_the_next(tmp_path: Path) -> None:
    (tmp_path / ".damaged-step-00000001.old.partial").mkdir()
    (tmp_path / ".step-00000002.old.partial").mkdir()
    files.remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_takes_damaged_ones_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    files.set_aside(files.committed_folder(tmp_path, 2))
    monkeypatch.setattr(files, "free_bytes", lambda folder: 100)
    assert [path.name for path in files.make_room(tmp_path, 100)] == ["damaged-step-00000002"]
