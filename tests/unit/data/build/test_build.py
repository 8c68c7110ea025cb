"""Builds in one process: what is written and counted, and that it is the same however the work was done."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from shardyard.data.build import pieces
from shardyard.data.build.build import Built, build, here, sample, shards
from shardyard.data.build.spec import LoadedSpec, load_spec
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_source
from shardyard.data.stream.reader import ShareReader, share_of
from shardyard.data.whole_files import aside
from shardyard.errors import DataError, UsageError
from shardyard.recipe.schema import Source

QUIET = lambda title, done, total: None  # noqa: E731


def document(number: int) -> str:
    return f"Document {number}: " + " ".join(f"w{number}x{n}" for n in range(12))


# Of 60 documents: six too short, then copies of earlier ones; the last is in the evaluation set.
TEXTS = [
    *(document(n) for n in range(40)),
    *(f"short {n}" for n in range(6)),
    *(document(n).upper() for n in range(10)),
    *(document(n) + " and a tail" for n in range(3)),
    "before " + " ".join(f"secret{n}" for n in range(13)),
]
STEPS = """
  - whitespace:
  - length: {unit: words, min: 5}
  - exact_duplicates:
  - near_duplicates: {ngram: 1, bands: 40, rows: 4}
  - lowercase:
  - decontaminate: {against: [{path: DIR/eval.jsonl}]}
"""


def write(folder: Path, files: int, steps: str = STEPS, **output: object) -> LoadedSpec:
    pytest.importorskip("rensa", reason="the extra clean")
    raw = folder / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    size = -(-len(TEXTS) // files)
    for number in range(files):
        rows = [{"body": text, "url": f"u{n}", "x": 1} for n, text in enumerate(TEXTS)][number * size :][:size]
        (raw / f"{number:03}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "eval.jsonl").write_text(json.dumps({"text": " ".join(f"secret{n}" for n in range(13))}) + "\n")
    options = ", ".join(f"{name}: {value}" for name, value in {"folder": f"{folder}/out", **output}.items())
    (folder / "build.yaml").write_text(
        (
            "name: clean\ndescription: Made up.\nsources:\n"
            "  - {path: DIR/raw/*.jsonl, text_column: body, keep_columns: [url], license: CC0-1.0}\n"
            f"steps:{steps}output: {{{options}}}\n"
        ).replace("DIR", str(folder))
    )
    return load_spec(folder / "build.yaml")


def rows_of(folder: Path) -> list[dict[str, str]]:
    return [row for file in sorted((folder / "data").iterdir()) for row in pq.read_table(file).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_what_is_left_in_file_order_and_what_each_step_removed(tmp_path: Path) -> None:
    built = build(write(tmp_path, 3), here, QUIET)
    assert [row["text"] for row in rows_of(built.folder)] == [document(n).lower() for n in range(40)]
    assert [row["url"] for row in rows_of(built.folder)] == [f"u{n}" for n in range(40)]
    counts = {step["name"]: step["counts"] for step in built.card["steps"]}
    removed = {name: (found["documents"], found["removed"]) for name, found in counts.items()}
    assert removed == {
        "whitespace": (60, 0),
        "length": (60, 6),
        "exact_duplicates": (54, 10),
        "near_duplicates": (44, 3),
        "lowercase": (41, 0),
        "decontaminate": (41, 1),
    }
    assert counts["length"]["reasons"] == {"fewer than 5 words": 6}
    assert counts["length"]["removed_bytes"] == 6 * len("short 0")
    assert counts["lowercase"]["changed"] == 40
    assert [one["text"] for one in counts["exact_duplicates"]["examples"]] == [document(n).upper() for n in range(3)]
    assert [one["kept"] for one in counts["exact_duplicates"]["examples"]] == [document(n) for n in range(3)]
    assert [one["clusters"] for one in built.card["steps"]] == [None, None, 10, 3, None, None]
    (source,) = built.card["sources"]
    assert (source["counts"]["documents"], source["counts"]["kept"], source["license"]) == (60, 40, "CC0-1.0")
    assert built.card["documents"] == 40
    assert built.card["bytes"] == sum(len(document(n)) for n in range(40))
    page = (built.folder / "README.md").read_text()
    assert "| 3. exact_duplicates | 54 | 10 | 18.5% |" in page
    assert f'train: [{{path: "{tmp_path}/out", holdout: 0.01}}]' in page
    assert not list(tmp_path.glob(".*"))


def test_a_recipe_reads_the_folder(tmp_path: Path) -> None:
    built = build(write(tmp_path, 2), here, QUIET)
    opened = open_source(Source(path=str(built.folder)), training=True)
    assert ShareReader(share_of(opened, 0, 1), Retry()).read(99) == [document(n).lower() for n in range(40)]


@pytest.mark.parametrize("format_", ["jsonl", "jsonl.zst"])
def test_lines_are_read_too(tmp_path: Path, format_: str) -> None:
    built = build(write(tmp_path, 2, "\n  - unicode:\n", format=f'"{format_}"', shard_bytes="1KiB"), here, QUIET)
    assert len(built.card["files"]) > 1
    opened = open_source(Source(path=str(built.folder)), training=True)
    assert ShareReader(share_of(opened, 0, 1), Retry()).read(99) == TEXTS


def shuffled(function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
    """Later tasks run first, as on a cluster."""
    found = {number: function(tasks[number]) for number in reversed(range(len(tasks)))}
    return (found[number] for number in range(len(tasks)))


def test_the_output_does_not_depend_on_who_did_what_when(tmp_path: Path) -> None:
    loaded = write(tmp_path, 5)
    first = contents(build(loaded, here, QUIET).folder)
    os.rename(tmp_path / "out", tmp_path / "first")
    assert contents(build(loaded, shuffled, QUIET).folder) == first


def test_one_large_file_is_divided_and_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = write(tmp_path, 1)
    assert len(pieces.pieces_of(loaded.spec)) == 1
    whole = rows_of(build(loaded, here, QUIET).folder)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1024)
    parts = pieces.pieces_of(loaded.spec)
    assert len(parts) > 5
    assert [part.first for part in parts[1:]] == [part.last for part in parts[:-1]]
    os.rename(tmp_path / "out", tmp_path / "first")
    again = build(loaded, here, QUIET)
    assert rows_of(again.folder) == whole
    assert again.card["sources"][0]["counts"]["documents"] == 60


class _EndError(Exception):
    """What ends a build in the middle."""


def dies_after(tasks: int) -> Callable[..., Iterator[Any]]:
    left = [tasks]

    def run(function: Callable[[Any], Any], some: Sequence[Any]) -> Iterator[Any]:
        for task in some:
            if not left[0]:
                raise _EndError
            left[0] -= 1
            yield function(task)

    return run


def test_a_stopped_build_goes_on_and_shows_nothing_before_its_end(tmp_path: Path) -> None:
    loaded = write(tmp_path, 3, shard_bytes="1KiB")
    first = build(loaded, here, QUIET)
    expected = contents(first.folder)
    # Three stages of three pieces, then the files.
    for tasks in (2, 8, 8 + len(first.card["files"])):
        os.rename(tmp_path / "out", tmp_path / f"before-{tasks}")
        with pytest.raises(_EndError):
            build(loaded, dies_after(tasks), QUIET)
        assert not (tmp_path / "out").exists()
        assert contents(build(loaded, here, QUIET).folder) == expected
    assert (tmp_path / "out").is_dir()
    assert not list(tmp_path.glob(".*"))


def test_half_written_files_of_a_killed_build_are_not_published(tmp_path: Path) -> None:
    loaded = write(tmp_path, 3, shard_bytes="1KiB")
    names: list[str] = []

    def killed(function: Callable[[Any], Any], some: Sequence[Any]) -> Iterator[Any]:
        """Runs tasks until a file of the output is being written."""
        for task in some:
            if hasattr(task, "path"):
                with aside(Path(task.path)) as partial:
                    partial.write_bytes(b"half")
                    names.append(partial.name.replace(str(os.getpid()), "1"))
                    partial.rename(partial.with_name(names[0]))  # As a process leaves it that was killed.
                    raise _EndError
            yield function(task)

    with pytest.raises(_EndError):
        build(loaded, killed, QUIET)
    (left,) = [path for path in tmp_path.rglob(".*") if path.name in names]
    assert left.read_bytes() == b"half"
    folder = build(loaded, here, QUIET).folder
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]


def test_finished_pieces_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shardyard.data.build import tasks

    loaded = write(tmp_path, 3)
    with pytest.raises(_EndError):
        build(loaded, dies_after(4), QUIET)
    done: list[tuple[int, int]] = []
    real = tasks._run_piece
    monkeypatch.setattr(
        tasks, "_run_piece", lambda task, path: (done.append((task.stage, task.number)), real(task, path))[1]
    )
    build(loaded, here, QUIET)
    assert done == [(1, 1), (1, 2), (2, 0), (2, 1), (2, 2)]


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    loaded = write(tmp_path, 2)
    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetWriter, "write_table", full)
        with pytest.raises(DataError, match=r"cannot be written: No space left on device.*goes on where it stopped"):
            build(loaded, here, QUIET)
    assert not (tmp_path / "out").exists()
    assert build(loaded, here, QUIET).card["documents"] == 40


def test_a_finished_build_is_kept_and_another_refused(tmp_path: Path) -> None:
    loaded = write(tmp_path, 2)
    first = build(loaded, here, QUIET)
    again = build(loaded, here, QUIET)
    assert (first.was_there, again.was_there, again.card) == (False, True, first.card)
    other = write(tmp_path, 2, "\n  - unicode:\n")
    with pytest.raises(UsageError, match="is not empty and holds another build or other files"):
        build(other, here, QUIET)
    assert build(other, here, QUIET, replace_old=True).card["documents"] == 60
    assert not list(tmp_path.glob(".*"))


def test_changed_data_is_another_build(tmp_path: Path) -> None:
    loaded = write(tmp_path, 2)
    with pytest.raises(_EndError):
        build(loaded, dies_after(1), QUIET)
    pieces.opened.cache_clear()
    with (tmp_path / "raw" / "000.jsonl").open("a") as file:
        file.write(json.dumps({"body": document(99), "url": "new"}) + "\n")
    built: Built = build(loaded, here, QUIET)
    assert "new" in {row["url"] for row in rows_of(built.folder)}


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    loaded = write(tmp_path, 2, "\n  - unicode:\n")
    with (tmp_path / "raw" / "001.jsonl").open("a") as file:
        file.write('{"body": broken\n{"body": ""}\n{"body": null}\n')
    pieces.opened.cache_clear()
    (source,) = build(loaded, here, QUIET).card["sources"]
    counts = source["counts"]
    assert (counts["documents"], counts["unusable"] + counts["empty"]) == (60, 3)
    assert "001.jsonl, row 31" in counts["named"][0]


def test_nothing_left_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the steps of clean leave no document"):
        build(write(tmp_path, 1, "\n  - length: {min: 9999}\n"), here, QUIET)


def test_a_sample_shows_the_steps_and_writes_nothing(tmp_path: Path) -> None:
    loaded = write(tmp_path, 3)
    work = tmp_path / "work"
    work.mkdir()
    card = sample(loaded, work, 50, QUIET)
    found = {step["name"]: step["counts"]["removed"] for step in card["steps"]}
    assert card["sources"][0]["counts"]["documents"] == 50
    assert (found["length"], found["exact_duplicates"]) == (6, 4)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("room", [1, 10, 25, 1000])
def test_files_hold_every_document_once_in_order(room: int) -> None:
    sizes = [(3, 30), (0, 0), (1, 100), (10, 10), (2, 2)]
    found = [(piece, row) for own in shards(sizes, room) for piece, first, last in own for row in range(first, last)]
    assert found == [(piece, row) for piece, (documents, _) in enumerate(sizes) for row in range(documents)]
    assert all(shards(sizes, room))
    if room == 1000:
        assert len(shards(sizes, room)) == 1
