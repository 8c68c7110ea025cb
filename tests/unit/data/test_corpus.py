"""The embedded corpora: whole, even, and without leakage between training and validation."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from shardyard.data.sources import corpus
from shardyard.data.sources.sources import open_source
from shardyard.recipe.schema import Source


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHARDYARD_CACHE", str(folder))
        yield folder


def read(name: str, split: str) -> dict[str, str]:
    """Documents by id."""
    tables = [pq.read_table(file) for file in corpus.corpus_files(name)[split]]
    return {id_: text for table in tables for id_, text in zip(*table.to_pydict().values(), strict=True)}


# Making the corpus of docstrings takes four seconds.
SLOW = {"python-docstrings": pytest.mark.slow}


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in corpus.CORPORA])
def test_a_corpus_has_even_shards_and_a_validation_split(name: str) -> None:
    files = corpus.corpus_files(name)
    assert (len(files["train"]), len(files["validation"])) == (64, 1)
    sizes = [sum(len(text) for text in pq.read_table(file)["text"].to_pylist()) for file in files["train"]]
    # One source file of the library is longer than a 64th of all; streams over prose and docstrings are even.
    assert max(sizes) < (3 if name == "python-code" else 1.1) * min(sizes)
    train, validation = read(name, "train"), read(name, "validation")
    assert 0.01 < sum(map(len, validation.values())) / sum(map(len, train.values())) < 0.15
    assert not set(train.values()) & set(validation.values())
    assert len(set(train.values())) == len(train), "no document comes twice"


def test_the_fingerprint_describes_the_corpus() -> None:
    found = corpus.fingerprint("python-docs")
    train = read("python-docs", "train")
    assert found.num_documents == len(train)
    assert found.num_bytes == sum(len(text.encode()) for text in train.values()) > 300_000
    assert found.num_validation_documents == len(read("python-docs", "validation"))
    assert len(found.sha256) == 64
    opened = open_source(Source(source="python-docs"), training=True)
    assert opened.fingerprint["sha256"] == found.sha256


@pytest.mark.slow
def test_a_module_is_held_out_in_all_corpora() -> None:
    """`json.decoder` and the like are keys; ids tell them as `module:name#part`, `name.function#n` and `name`."""
    modules = set(read("python-code", "train")) | set(read("python-code", "validation"))

    def module_of(id_: str) -> str:
        name = id_.removeprefix("module:").split("#")[0]
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    sides = {}
    for split in ("train", "validation"):
        found = {module_of(id_) for id_ in read("python-docs", split) if id_.startswith("module:")}
        found |= {module_of(id_) for id_ in read("python-docstrings", split)}
        sides[split] = found | set(read("python-code", split))
    assert not sides["train"] & sides["validation"]
    assert len(sides["validation"]) >= 5
    topics = {split: {id_.split("#")[0] for id_ in read("python-docs", split)} for split in sides}
    assert not topics["train"] & topics["validation"]
    assert any(id_.startswith("topic:") for id_ in topics["validation"])


@pytest.mark.slow
def test_documents_are_what_they_say() -> None:
    docs = {**read("python-docs", "train"), **read("python-docs", "validation")}
    assert "grammar" in "".join(text for id_, text in docs.items() if id_.startswith("topic:"))
    strings = {**read("python-docstrings", "train"), **read("python-docstrings", "validation")}
    assert strings["textwrap.dedent#1"].startswith("def textwrap.dedent(text)\n\nRemove any common leading whitespace")
    code = {**read("python-code", "train"), **read("python-code", "validation")}
    assert "def dedent(text):" in code["textwrap"]
    assert not [id_ for id_ in code if id_.split(".")[0] in ("test", "idlelib", "lib2to3", "ensurepip")]


def test_long_texts_are_cut_between_paragraphs_and_nothing_is_lost() -> None:
    text = "\n\n".join(f"paragraph {n} " + "x" * 900 for n in range(20))
    parts = list(corpus._parts("t", "t", text))
    assert "\n\n".join(part.text.rstrip("\n") for part in parts) == text
    assert all(len(part.text) < corpus.PART_CHARACTERS + 1000 for part in parts)
    assert [part.id for part in parts] == [f"t#{n}" for n in range(len(parts))]
    assert len(parts) > 3


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('"""Doc."""\nx = 1\n', "Doc."),
        ("#!/usr/bin/python\n# -*- coding\n\nr'''A\\b'''\n", "A\\b"),
        ("import os\n'''no'''\n", ""),
        ("x = '''no'''\n", ""),
    ],
)
def test_module_docstrings_by_pattern(source: str, expected: str) -> None:
    assert corpus._module_docstring(source) == expected


def test_two_builders_at_once_and_a_damaged_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path))
    results: list[dict[str, list[str]]] = []
    threads = [threading.Thread(target=lambda: results.append(corpus.corpus_files("python-docs"))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1]
    before = corpus.fingerprint("python-docs")
    damaged = Path(results[0]["train"][5])
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert corpus.corpus_files("python-docs") == results[0]
    assert pq.read_table(damaged).num_rows > 0
    assert corpus.fingerprint("python-docs") == before
    assert [path.name for path in (tmp_path / "corpora").iterdir()] == [damaged.parent.name], "nothing is left over"
    json.loads((damaged.parent / "manifest.json").read_text())


def test_an_unwritable_cache_falls_back_to_a_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file where the folder should be")
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files = corpus.corpus_files("python-docs")
    assert Path(files["train"][0]).is_relative_to(tmp_path / f"shardyard-{__import__('os').getuid()}")
