"""A checkpoint on disk is whole or it is not there, whatever happens to its writer, its disk or its bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.blocks import BLOCK_BYTES, written
from shardyard.errors import CheckpointError

CONTENTS = {"engine/model.pt": b"weights" * 100, "engine/optimizer_0.pt": b"states" * 50, "data.json": b"{}"}


def write(checkpoints: Path, step: int, contents: dict[str, bytes] = CONTENTS, **metadata: Any) -> Path:
    """A checkpoint as the engine writes one."""
    partial = files.partial_folder(checkpoints, step)
    entries = {}
    for name, data in contents.items():
        (partial / name).parent.mkdir(parents=True, exist_ok=True)
        entries[name] = written(partial / name, [memoryview(data)])
    return files.commit(checkpoints, step, entries, **{"world_size": 2, **metadata})


def is_good(folder: Path) -> bool:
    try:
        return not files.damaged_files(folder, files.read_manifest(folder))
    except CheckpointError:
        return False


def test_the_manifest_names_everything(tmp_path: Path) -> None:
    folder = write(tmp_path, 200, zero_stage=1)
    assert folder == tmp_path / "step-00000200"
    manifest = files.read_manifest(folder)
    assert (manifest["format"], manifest["step"], manifest["world_size"], manifest["zero_stage"]) == (2, 200, 2, 1)
    assert manifest["files"].keys() == CONTENTS.keys()
    entry = manifest["files"]["data.json"]
    assert (entry["size_bytes"], entry["block_bytes"]) == (2, BLOCK_BYTES)
    # That of the reference implementation.
    assert entry["blake3"] == ["6e46dd10defc9b56c29a6ec56b508c21f54c08192194e4df25bf36f0c9c3c279"]
    assert files.damaged_files(folder, manifest) == []
    assert os.listdir(tmp_path) == ["step-00000200"]


@pytest.mark.parametrize("name", CONTENTS)
def test_every_changed_bit_of_every_file_is_noticed(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path, 1)
    manifest = files.read_manifest(folder)
    data = CONTENTS[name]
    for position in {0, 1, len(data) // 2, len(data) - 1}:
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            (folder / name).write_bytes(changed)
            assert files.damaged_files(folder, manifest) == [name], (position, bit)
    (folder / name).write_bytes(data)
    assert files.damaged_files(folder, manifest) == []


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("damage", ["truncated", "longer", "emptied", "removed", "a folder", "a dangling link"])
def test_files_that_are_not_what_was_written_are_noticed(tmp_path: Path, name: str, damage: str) -> None:
    folder = write(tmp_path, 1)
    path, data = folder / name, CONTENTS[name]
    path.unlink()
    if damage == "a folder":
        path.mkdir()
    elif damage == "a dangling link":
        path.symlink_to(tmp_path / "nowhere")
    elif damage != "removed":
        path.write_bytes({"truncated": data[:-1], "longer": data + b"\0", "emptied": b""}[damage])
    assert files.damaged_files(folder, files.read_manifest(folder)) == [name]


def test_a_file_too_many_is_noticed(tmp_path: Path) -> None:
    """DeepSpeed finds shards by pattern: one that nobody hashed would be unpickled."""
    folder = write(tmp_path, 1)
    (folder / "engine" / "evil_optim_states.pt").write_bytes(b"\x80")
    (folder / ".DS_Store").write_bytes(b"")
    manifest = files.read_manifest(folder)
    assert files.damaged_files(folder, manifest) == ["engine/evil_optim_states.pt"]
    shares = [files.damaged_files(folder, manifest, part=part, parts=3) for part in range(3)]
    assert sorted(name for share in shares for name in share) == ["engine/evil_optim_states.pt"]


def test_ranks_share_the_reading_and_miss_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    manifest = files.read_manifest(folder)
    for name in CONTENTS:
        (folder / name).write_bytes(b"")
    for parts in (1, 2, 3, 4, 8):
        shares = [files.damaged_files(folder, manifest, part=part, parts=parts) for part in range(parts)]
        assert sorted(name for share in shares for name in share) == sorted(CONTENTS)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '"text"', "{}", '{"sha256": null}', "\x00" * 50, '{"format": 1, "sha256": "abc"}'],
)
def test_a_garbled_manifest_is_noticed(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path, 1)
    (folder / files.MANIFEST).write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest.json (cannot be read|does not match)"):
        files.read_manifest(folder)


def test_a_missing_or_binary_manifest_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / files.MANIFEST).write_bytes(bytes(range(256)))
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.read_manifest(folder)
    (folder / files.MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        files.read_manifest(folder)


def test_every_byte_of_the_manifest_counts(tmp_path: Path) -> None:
    """Changes that JSON does not see, in white space, are the only ones that may pass."""
    folder = write(tmp_path, 1)
    path = folder / files.MANIFEST
    good = path.read_bytes()
    meaning = json.loads(good)
    noticed = 0
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1
        path.write_bytes(changed)
        try:
            assert files.read_manifest(folder) == meaning, position
        except CheckpointError:
            noticed += 1
    assert noticed > 0.8 * len(good)
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CheckpointError):
            files.read_manifest(folder)


def test_a_format_of_the_future_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FORMAT", 3)
    folder = write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 3; this version reads 1 and 2"):
        files.read_manifest(folder)


def test_the_newest_are_kept_and_never_the_last_one_lost(tmp_path: Path) -> None:
    for step in (100, 20, 1_000_000_000, 3):
        write(tmp_path, step)
    names = [path.name for path in files.committed_checkpoints(tmp_path)]
    # By number and not by name: a step of ten digits comes after one of eight.
    assert names == ["step-00000003", "step-00000020", "step-00000100", "step-1000000000"]
    assert [path.name for path in files.rotate(tmp_path, 2)] == names[:2]
    assert [path.name for path in files.committed_checkpoints(tmp_path)] == names[2:]
    assert files.rotate(tmp_path, 2) == files.rotate(tmp_path, 5) == []
    files.rotate(tmp_path, 1)
    files.rotate(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["step-1000000000"]
    assert is_good(tmp_path / "step-1000000000")
    with pytest.raises(AssertionError):
        files.rotate(tmp_path, 0)


def test_leftovers_of_the_same_names_are_in_nobodys_way(tmp_path: Path) -> None:
    """Of a rotation, of a replacement and of a writer that were each cut short."""
    (tmp_path / "step-00000001").mkdir()
    for name in (".step-00000001.partial", ".step-00000001.old.partial", ".step-00000001.replaced.partial"):
        (tmp_path / name / "engine").mkdir(parents=True)
        (tmp_path / name / "engine" / "junk").write_bytes(b"junk")
    files.remove_partial(tmp_path)
    assert os.listdir(tmp_path) == ["step-00000001"]
    for name in (".step-00000001.old.partial", ".step-00000002.replaced.partial"):
        (tmp_path / name / "engine").mkdir(parents=True)
    for step in (1, 2, 2):
        write(tmp_path, step)
    files.rotate(tmp_path, 1)
    assert os.listdir(tmp_path) == ["step-00000002"]


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    write(tmp_path, 7)
    folder = write(tmp_path, 7, {"engine/model.pt": b"other"}, world_size=4)
    assert files.read_manifest(folder)["world_size"] == 4
    assert is_good(folder)
    assert os.listdir(tmp_path) == [folder.name]


def test_one_that_cannot_be_removed_fails_no_rotation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "step-00000001":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse)
    assert [path.name for path in files.rotate(tmp_path, 1)] == ["step-00000002"]
    monkeypatch.undo()
    assert [path.name for path in files.rotate(tmp_path, 1)] == ["step-00000001"]


def test_only_folders_of_that_name_are_checkpoints(tmp_path: Path) -> None:
    assert files.committed_checkpoints(tmp_path / "nowhere") == []
    (tmp_path / "a-file").write_text("")
    assert files.committed_checkpoints(tmp_path / "a-file") == []
    for name in ("step-1", "step-0000000x", "step-00000001.bak", "Step-00000001", ".step-00000002", "final", "step-"):
        (tmp_path / name).mkdir()
    (tmp_path / "step-00000003").write_text("a file")
    (tmp_path / "step-00000004").symlink_to(tmp_path / "nowhere")
    assert files.committed_checkpoints(tmp_path) == []


def test_links_are_followed_for_reading_and_only_unlinked_by_rotation(tmp_path: Path) -> None:
    """Checkpoints that someone moved to a larger disk stay there."""
    elsewhere = tmp_path / "large disk"
    checkpoints = tmp_path / "checkpoints with spaces, ünïcode and 'quotes'"
    checkpoints.mkdir()
    write(elsewhere, 1)
    (checkpoints / "step-00000001").symlink_to(elsewhere / "step-00000001")
    write(checkpoints, 2)
    assert all(is_good(folder) for folder in files.committed_checkpoints(checkpoints))
    files.rotate(checkpoints, 1)
    assert os.listdir(checkpoints) == ["step-00000002"]
    assert is_good(elsewhere / "step-00000001")
    (checkpoints / "step-00000003").symlink_to(elsewhere / "step-00000001")
    write(checkpoints, 3)
    assert not (checkpoints / "step-00000003").is_symlink()
    assert is_good(elsewhere / "step-00000001")


def test_a_damaged_one_gives_up_its_name_and_keeps_its_files(tmp_path: Path) -> None:
    for _ in range(2):
        folder = write(tmp_path, 5)
        (folder / "data.json").write_bytes(b"[]")
        aside = files.set_aside(folder)
        assert aside == tmp_path / "damaged-step-00000005"
        assert (aside / "data.json").read_bytes() == b"[]"
        assert files.committed_checkpoints(tmp_path) == []
    assert files.set_aside(tmp_path / "step-00000006") is None


def die_of(writer: Callable[[], None], seconds: float | None = None) -> int:
    """Run `writer` in a process of its own, kill it after `seconds`; returns its exit status.

    A fork starts in milliseconds, where importing torch again would take a second.
    """
    process = os.fork()
    if process == 0:
        try:
            writer()
            os._exit(0)
        finally:
            os._exit(1)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def write_for_ever(checkpoints: Path) -> None:
    """Go on from the newest step; each second one is written a second time, as after a restart from an older one."""
    files.remove_partial(checkpoints)
    newest = files.committed_checkpoints(checkpoints)[-1:]
    step = int(newest[0].name.removeprefix("step-")) if newest else 0
    while True:
        step += 1
        for _ in range(1 + step % 2):
            write(checkpoints, step)
        files.rotate(checkpoints, 2)


@pytest.mark.slow
def test_a_writer_killed_at_any_moment_leaves_nothing_that_only_looks_whole(tmp_path: Path) -> None:
    generator = random.Random(0)
    seen = 0
    for _ in range(60):
        status = die_of(lambda: write_for_ever(tmp_path), seconds=generator.uniform(0.0, 0.1))
        assert status == -signal.SIGKILL
        assert all(is_good(folder) for folder in files.committed_checkpoints(tmp_path))
        # The next run begins with this.
        files.remove_partial(tmp_path)
        whole = files.committed_checkpoints(tmp_path)
        assert all(is_good(folder) for folder in whole), whole
        # Once there has been a checkpoint, there is one.
        assert len(whole) >= min(seen, 1)
        seen = max(seen, len(whole))
    assert seen >= 2
    # Each kill between a commit and its rotation leaves one more; one rotation makes up for all of them.
    files.rotate(tmp_path, 2)
    assert len(files.committed_checkpoints(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == [folder.name for folder in files.committed_checkpoints(tmp_path)]


DISK_EVENTS = frozenset({"open", "os.rename", "os.mkdir", "os.rmdir", "os.remove", "shutil.rmtree", "os.scandir"})


def write_and_die(checkpoints: Path, fatal: int) -> None:
    """Replace step 2 and rotate step 1 away; die before the `fatal`-th operation on the disk."""
    count = 0

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event in DISK_EVENTS:
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    write(checkpoints, 2)
    files.rotate(checkpoints, 1)


@pytest.mark.slow
def test_a_kill_before_each_single_operation_leaves_only_whole_ones(tmp_path: Path) -> None:
    for fatal in range(1, 200):
        checkpoints = tmp_path / str(fatal)
        for step in (1, 2):
            write(checkpoints, step)
        status = die_of(lambda fatal=fatal, checkpoints=checkpoints: write_and_die(checkpoints, fatal))
        whole = files.committed_checkpoints(checkpoints)
        assert whole, fatal
        assert all(is_good(folder) for folder in whole), (fatal, whole)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        # The next run begins with this; step 2 is there, the old one or the new one.
        files.remove_partial(checkpoints)
        assert is_good(files.committed_folder(checkpoints, 2)), fatal
    assert fatal > 20
    assert [folder.name for folder in whole] == ["step-00000002"]


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of a fixed size; mounting one takes root."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_no_checkpoint_and_the_next_one_succeeds(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        write(disk, 1)
        with pytest.raises(OSError, match="No space left"):
            write(disk, 2, {"engine/model.pt": bytes(2 << 20)})
        assert [folder.name for folder in files.committed_checkpoints(disk)] == ["step-00000001"]
        assert is_good(disk / "step-00000001")
        files.remove_partial(disk)
        assert is_good(write(disk, 2))


def test_a_disk_too_full_for_the_manifest_leaves_no_checkpoint(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        # tmpfs gives out pages of 4 KiB: one for each folder's file, none left for the manifest.
        partial = files.partial_folder(disk, 1)
        partial.mkdir(parents=True)
        entries = {"model.pt": written(partial / "model.pt", [memoryview(bytes(60 * 1024))])}
        with pytest.raises(OSError, match="No space left"):
            (disk / "filler").write_bytes(bytes(1 << 20))
        with pytest.raises(OSError, match="No space left"):
            files.commit(disk, 1, entries)
        assert files.committed_checkpoints(disk) == []


def test_json_is_written_whole_or_raises(tmp_path: Path) -> None:
    entry = files.write_json(tmp_path / "a.json", {"b": 1, "a": [None, 1.5]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 1.5], "b": 1}
    assert entry.size_bytes == (tmp_path / "a.json").stat().st_size
    with pytest.raises(TypeError):
        files.write_json(tmp_path / "b.json", {"bad": object()})


def test_what_was_recorded_is_synced_and_a_disk_that_fails_there_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("metrics.jsonl", "events.jsonl", "plan.json"):
        (tmp_path / name).write_text("{}\n")
    synced = []

    def sync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", sync)
    files.sync_records(tmp_path)
    assert sorted(synced) == ["events.jsonl", "metrics.jsonl"]
