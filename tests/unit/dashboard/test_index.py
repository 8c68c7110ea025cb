"""The dashboard's index: it follows run folders as they grow, break, move and vanish, and can always be built again."""

from __future__ import annotations

import gc
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shardyard.dashboard.charts.sparkline import MOST_SHOWN, Sparkline
from shardyard.dashboard.index import index as module
from shardyard.dashboard.index import ingest
from shardyard.dashboard.index.index import Index
from shardyard.dashboard.index.ingest import flatten, read_yaml
from shardyard.dashboard.index.store import Store
from shardyard.errors import UsageError
from support.dash_cases import add_lines, index_of, write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs", "one-1", losses=[3.0, 2.0])
    return tmp_path / "runs"


@pytest.fixture
def index(runs: Path, tmp_path: Path) -> Iterator[Index]:
    made = index_of(runs, tmp_path / "cache")
    yield made
    made.stop()


def row(index: Index, run_id: str = "one-1") -> dict[str, Any]:
    found = index.store.reader.execute("SELECT * FROM runs WHERE id = ?", (run_id,)).fetchone()
    assert found is not None
    return dict(found)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_run_is_read_and_nothing_is_written_beside_it(runs: Path, tmp_path: Path) -> None:
    before = contents(runs)
    index = index_of(runs, tmp_path / "cache")
    found = row(index)
    assert (found["name"], found["state"], found["step"], found["loss"]) == ("one", "finished", 2, 2.0)
    assert (found["problem"], found["rows"], json.loads(found["spark"])) == (None, 2, [3.0, 2.0, 2.0])
    fields = dict(index.store.reader.execute("SELECT path, value FROM fields").fetchall())
    assert (fields["optimizer.lr"], fields["data.drop_inputs"], fields["zero.stage"]) == (1e-05, "false", 1)
    index.stop()
    assert contents(runs) == before


def test_only_what_was_added_is_read(index: Index, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, int]] = []
    real = ingest.pread
    monkeypatch.setattr(
        ingest, "pread", lambda d, count, offset: read.append((offset, count)) or real(d, count, offset)
    )
    size = (runs / "one-1" / "metrics.jsonl").stat().st_size
    index.catch_up()
    assert read == []
    add_lines(runs / "one-1", [1.5], first=3)
    index.catch_up()
    assert [offset for offset, count in read if count > 1000] == [size]
    assert (row(index)["loss"], row(index)["rows"]) == (1.5, 3)


def test_an_ended_run_rests_until_one_of_its_files_changes(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(runs, tmp_path / "cache").stop()
    index = index_of(runs, tmp_path / "cache")  # the state is known from the time before
    looked: list[Path] = []
    real = module.ingest
    monkeypatch.setattr(module, "ingest", lambda c, folder, key: looked.append(folder) or real(c, folder, key))

    def look() -> int:
        for one in index._looks.values():
            one.due = 0.0
        index.look()
        return len(looked)

    assert (look(), look()) == (0, 0)
    add_lines(runs / "one-1", [1.5], first=3)
    assert (look(), row(index)["loss"], look()) == (1, 1.5, 1)
    info = json.loads((runs / "one-1" / "run.json").read_text()) | {"state": "running"}
    (runs / "one-1" / "run.json").write_text(json.dumps(info))
    assert (look(), row(index)["state"], look()) == (2, "running", 3)  # a live one is always read
    index.stop()


def test_the_version_grows_only_with_what_readers_can_see(
    index: Index, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, seen = index.version, []
    real = module.ingest
    monkeypatch.setattr(module, "ingest", lambda *a: seen.append(index.version) or real(*a))
    add_lines(runs / "one-1", [1.5], first=3)
    write_run(runs, "two-1")
    index.catch_up()
    assert max(seen) <= before + 1  # the new folder is committed, nothing of what is read is
    newest = index.store.reader.execute("SELECT MAX(version) FROM runs").fetchone()[0]
    assert index.version == newest > before


def test_readers_of_threads_that_ended_are_closed(index: Index) -> None:
    for _ in range(5):
        thread = threading.Thread(target=lambda: index.store.reader.execute("SELECT 1").fetchone())
        thread.start()
        thread.join()
    gc.collect()
    assert len(index.store._opened) <= 1


def test_a_half_written_line_counts_once_it_is_whole(index: Index, runs: Path) -> None:
    metrics = runs / "one-1" / "metrics.jsonl"
    with metrics.open("a") as file:
        file.write('{"step": 3, "train/loss"')
    index.catch_up()
    assert (row(index)["step"], row(index)["problem"]) == (2, None)
    with metrics.open("a") as file:
        file.write(": 1.25}\n")
    index.catch_up()
    assert (row(index)["step"], row(index)["loss"]) == (3, 1.25)


def test_garbled_lines_are_counted_and_the_rest_is_read(index: Index, runs: Path) -> None:
    with (runs / "one-1" / "metrics.jsonl").open("ab") as file:
        file.write(b'\x00\xff garbage\n[1, 2]\n{"step": "no"}\n{"step": true}\n{"no": "step"}\n')
        file.write(b"[" * 100_000 + b"\n" + b'{"step": 7, "train/loss": 0.5, "big": 1' + b"0" * 400 + b"}\n")
    index.catch_up()
    found = row(index)
    assert (found["step"], found["loss"]) == (7, 0.5)
    assert found["problem"] == "metrics.jsonl: 6 lines cannot be read"


def test_a_shorter_copy_is_read_afresh_and_a_grown_one_goes_on(index: Index, runs: Path) -> None:
    metrics = runs / "one-1" / "metrics.jsonl"
    copy = metrics.with_name("copy")
    copy.write_bytes(metrics.read_bytes() + b'{"step": 3, "train/loss": 1.0}\n')
    copy.replace(metrics)  # as rsync does
    index.catch_up()
    assert row(index)["rows"] == 3
    metrics.write_text('{"step": 1, "train/loss": 9.0}\n')
    index.catch_up()
    found = row(index)
    assert (found["rows"], found["loss"], found["step"]) == (1, 9.0, 1)
    assert index.store.reader.execute("SELECT count FROM metrics WHERE name = 'train/loss'").fetchone()[0] == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"id": "x", "na', "run.json cannot be read"),
        (b"[]", "it is not a JSON object"),
        (b"\xff\xfe\x00", "run.json cannot be read"),
        (b"[" * 50_000, "run.json cannot be read"),
        (b'{"a": "' + b"x" * (2 << 20) + b'"}', "run.json cannot be read"),
        (None, "run.json is missing"),
    ],
)
def test_a_damaged_run_is_shown_as_such_beside_the_others(
    index: Index, runs: Path, text: bytes | None, problem: str
) -> None:
    write_run(runs, "two-1")
    info = runs / "one-1" / "run.json"
    info.unlink() if text is None else info.write_bytes(text)
    index.catch_up()
    assert problem in row(index)["problem"]
    assert (row(index)["loss"], row(index)["name"]) == (2.0, "one")  # what was known before still holds
    assert row(index, "two-1")["problem"] is None


def test_values_of_the_wrong_kind_break_nothing(runs: Path, tmp_path: Path) -> None:
    odd = {"name": 7, "state": ["x"], "created": "yesterday", "world_size": "two", "attempts": 2**70, "plan": "no"}
    write_run(runs, "odd-1", **odd, driver="me")
    index = index_of(runs, tmp_path / "cache")
    found = row(index, "odd-1")
    assert (found["name"], found["state"], found["created"], found["attempts"]) == ("", "unknown", None, 0)
    index.stop()


def test_folders_that_are_no_runs_are_left_out(runs: Path, tmp_path: Path) -> None:
    (runs / "data").mkdir()
    (runs / ".hidden").mkdir()
    (runs / "a-file").write_text("x")
    (runs / "half-written").mkdir()
    (runs / "half-written" / "recipe.yaml").write_text("name: x\n")
    outside = write_run(tmp_path / "elsewhere", "secret-1")
    (runs / "link").symlink_to(outside)
    os.mkdir(os.fsencode(runs) + b"/\xff-1")
    index = index_of(runs, tmp_path / "cache")
    ids = {found[0] for found in index.store.reader.execute("SELECT id FROM runs")}
    assert ids == {"one-1", "half-written"}
    assert any("link is a link" in problem for problem in index.problems)
    assert any("not UTF-8" in problem for problem in index.problems)
    index.stop()


def test_links_inside_a_run_are_not_followed(runs: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    secret.write_text('{"step": 1, "train/loss": 42.0}\n')
    folder = write_run(runs, "linked-1")
    for name in ("metrics.jsonl", "run.json", "resolved.yaml"):
        (folder / name).unlink()
        (folder / name).symlink_to(secret)
    os.mkfifo(write_run(runs, "pipe-1") / "x")
    (runs / "pipe-1" / "metrics.jsonl").unlink()
    os.mkfifo(runs / "pipe-1" / "metrics.jsonl")
    index = index_of(runs, tmp_path / "cache")
    assert row(index, "linked-1")["loss"] is None
    assert row(index, "linked-1")["problem"]
    assert "not a plain file" in row(index, "pipe-1")["problem"]
    index.stop()


def test_runs_that_vanish_or_are_renamed_go_and_come(index: Index, runs: Path) -> None:
    version = index.version
    (runs / "one-1").rename(runs / "new-1")
    index.catch_up()
    assert index.folder_of("one-1") is None
    assert row(index, "new-1")["loss"] == 2.0
    gone = index.store.reader.execute("SELECT id FROM gone WHERE version > ?", (version,)).fetchall()
    assert [tuple(found) for found in gone] == [("one-1",)]
    shutil.rmtree(runs)
    index.catch_up()
    assert index.store.reader.execute("SELECT COUNT(*) FROM runs").fetchone()[0] == 0
    assert index.store.reader.execute("SELECT COUNT(*) FROM chunks").fetchone()[0] == 0
    assert "is not there" in index.problems[0]
    write_run(runs, "again-1")
    index.catch_up()
    assert (row(index, "again-1")["problem"], index.problems) == (None, [])


def test_a_second_start_reads_nothing_again(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index_of(runs, tmp_path / "cache").stop()
    monkeypatch.setattr(ingest, "parse", lambda *a: pytest.fail("metrics were read again"))
    monkeypatch.setattr(ingest, "read_yaml", lambda *a: pytest.fail("the recipe was read again"))
    index = index_of(runs, tmp_path / "cache")
    assert row(index)["loss"] == 2.0
    index.stop()


@pytest.mark.parametrize("damage", ["garbage", "old", "truncated"])
def test_a_damaged_or_outdated_index_is_built_again(runs: Path, tmp_path: Path, damage: str) -> None:
    first = index_of(runs, tmp_path / "cache")
    path = first.store.path
    first.stop()
    if damage == "old":
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA user_version = 0")
        connection.close()
    else:
        path.write_bytes(b"not a database" * 1000 if damage == "garbage" else path.read_bytes()[:5000])
    index = index_of(runs, tmp_path / "cache")
    assert row(index)["loss"] == 2.0
    index.stop()


def test_a_cache_that_cannot_be_written_is_an_error_in_words(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="SHARDYARD_CACHE"):
        Store(runs, tmp_path / "file" / "index")


def test_the_index_is_for_its_owner_alone(index: Index) -> None:
    assert index.store.path.stat().st_mode & 0o077 == 0
    assert index.store.path.parent.stat().st_mode & 0o077 == 0


def test_a_running_run_without_its_driver_is_lost(runs: Path, tmp_path: Path) -> None:
    import socket

    gone = {"host": socket.gethostname(), "pid": 2**22 - 1}
    write_run(runs, "lost-1", state="running", driver=gone)
    write_run(runs, "live-1", state="running", driver=gone | {"pid": os.getpid()})
    write_run(runs, "far-1", state="running", driver=gone | {"host": "elsewhere"})
    index = index_of(runs, tmp_path / "cache")
    assert [row(index, name)["state"] for name in ("lost-1", "live-1", "far-1")] == ["lost", "running", "running"]
    index.stop()


def test_many_writers_at_once_lose_nothing(runs: Path, tmp_path: Path) -> None:
    folders = [write_run(runs, f"w{number}-1", losses=[], state="running") for number in range(20)]
    index = Index(runs, Store(runs, tmp_path / "cache"))
    index.start()

    def write(folder: Path) -> None:
        for step in range(1, 101):
            add_lines(folder, [1.0 / step], first=step)

    threads = [threading.Thread(target=write, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    index._stop.set()
    assert index._thread is not None
    index._thread.join()
    index.catch_up()
    counts = index.store.reader.execute(
        "SELECT count FROM metrics WHERE name = 'train/loss' AND count = 100"
    ).fetchall()
    assert len(counts) == 20
    chunks = index.store.reader.execute("SELECT COUNT(*), SUM(size) FROM chunks WHERE name = 'train/loss'").fetchone()
    assert chunks[1] == 2 + 20 * 100
    assert chunks[0] < 20 * 10
    index.stop()


def test_a_long_line_is_skipped_in_bounded_memory(index: Index, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "READ_BYTES", 4096)
    monkeypatch.setattr(ingest, "MOST_LINE_BYTES", 2048)
    with (runs / "one-1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "x": "' + "y" * 20_000 + '"}\n{"step": 4, "train/loss": 0.25}\n')
    index.catch_up()
    assert row(index)["loss"] == 0.25
    assert "cannot be read" in row(index)["problem"]


def test_sweeps_and_tags(runs: Path, tmp_path: Path) -> None:
    (runs / "sweeps" / "lr-1").mkdir(parents=True)
    write_run(runs, "trial-1", group="lr-1", tags="a, 'b c'")
    write_run(runs, "other-1", group="../..")
    index = index_of(runs, tmp_path / "cache")
    assert (row(index, "trial-1")["sweep"], row(index, "trial-1")["tags"]) == ("lr-1", "\na\nb c\n")
    assert row(index, "other-1")["sweep"] is None
    index.stop()


def test_yaml_is_read_as_1_2() -> None:
    text = b"a: 1e-05\nb: no\nc: 2026-01-01\nd: true\nf: ~\ng: 1.5\nh: -3\ni: '1'\non: x\nj: .5\nk: 3E2\n"
    expected = {"a": 1e-05, "b": "no", "c": "2026-01-01", "d": True, "f": None, "g": 1.5, "h": -3}
    assert read_yaml(text) == expected | {"i": "1", "on": "x", "j": 0.5, "k": 300.0}
    assert dict(flatten({"a": [{"b": True}], "c": 2**70, "d": {}})) == {"a.0.b": "true", "c": 2.0**70}


def test_a_sparkline_keeps_its_shape_in_few_points() -> None:
    line = Sparkline()
    for begin in range(0, 10_000, 7):
        line = Sparkline.load(line.dump())
        line.add([float(value) for value in range(begin, begin + 7)])
    shown = [value for value in line.shown(10_002.0) if value is not None]
    assert 20 <= len(shown) <= MOST_SHOWN
    assert shown == sorted(shown)
    assert (shown[0], shown[-1]) == (0.0, 10_002.0)
    gap = Sparkline()
    gap.add([1.0, float("nan"), 2.0])
    assert gap.shown(2.0) == [1.0, None, 2.0, 2.0]
