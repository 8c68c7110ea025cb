"""Sets of tokenised documents: their address, unusable rows, interruptions, damage, and what they refuse."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.data.formats.inputs import FormatInputs
from shardyard.data.ledger.documents import content_hash
from shardyard.data.stream.loader import TrainLoader
from shardyard.data.tokenized import making, tasks, writing
from shardyard.data.tokenized.documents import TokenizedSource
from shardyard.data.tokenized.layout import damaged_files, read_manifest
from shardyard.data.tokenized.opening import open_documents
from shardyard.data.tokenizers.tokenizer import load_tokenizer
from shardyard.errors import DataError, UsageError
from shardyard.launch.run.prepare import prepare
from shardyard.launch.tokens.tokenize import tokenize
from shardyard.planning.plan import World
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Data, Masking, Source
from shardyard.recipe.sources.token_sets import any_sets_of, tokenized_root
from support.data_cases import batches, bytes_tokenizer, data, documents, loader, rows, write_jsonl
from support.tokenizers.tokenized import recipe_of, tokenize_sources


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def recipe(tmp_path: Path) -> Data:
    return data([Source(path=write_jsonl(tmp_path, [documents(60), documents(60, "e")]))])


def is_read(recipe: Data, tokenizer: Any = None) -> bool:
    inputs = FormatInputs(recipe, tokenizer or bytes_tokenizer())
    return isinstance(open_documents(inputs, "causal_lm", recipe.train[0], training=True), TokenizedSource)


def test_the_bytes_are_those_of_the_documented_format(tmp_path: Path) -> None:
    source = Source(path=write_jsonl(tmp_path / "a", [["ab", "", "cde"]]))
    (made,) = tokenize_sources(data([source]))
    (folder,) = tokenized_root().iterdir()
    assert made.token_type == "uint16"
    assert (folder / "000000-0000.tokens").read_bytes() == np.array([97, 98, 99, 100, 101], "<u2").tobytes()
    kept = np.frombuffer((folder / "000000-0000.rows").read_bytes(), "<u8,<u8,<u8,<u4,<u4")
    assert kept["f0"].tolist() == [2, 2, 5]
    assert kept["f3"].tolist() == [2, 0, 3]
    assert kept["f4"].tolist() == [0, 1, 0]
    assert (made.counts.documents, made.counts.empty, made.counts.tokens, made.counts.largest_id) == (2, 1, 5, 101)
    assert sorted(path.name for path in folder.iterdir()) == [
        "000000-0000.rows",
        "000000-0000.tokens",
        "manifest.json",
    ]
    assert damaged_files(folder) == []
    (folder / "000000-0000.tokens").write_bytes(b"0123456789")
    assert damaged_files(folder) == ["000000-0000.tokens"]
    (folder / "000000-0000.tokens").write_bytes(b"0123")
    with pytest.raises(DataError, match="is 4 bytes long, not 10"):
        is_read(data([source]))


def test_the_address_follows_source_tokenizer_and_options(tmp_path: Path, recipe: Data) -> None:
    tokenize_sources(recipe)
    assert is_read(recipe)
    assert is_read(data([recipe.train[0].model_copy(update={"holdout": 0.1})])), "every row keeps its number"
    assert not is_read(recipe, load_tokenizer("bytes", ["<extra>"]))
    assert not is_read(recipe.model_copy(update={"tokenized": "never"}))
    path = tmp_path / "part-001.jsonl"
    os.utime(path, ns=(1, 1))
    assert not is_read(recipe)
    with pytest.raises(DataError, match=r"is not tokenised on this machine.*shardyard data tokenize"):
        is_read(recipe.model_copy(update={"tokenized": "always"}))


def test_unusable_rows_are_counted_and_named_as_in_streaming(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    texts = documents(40)
    lines = [json.dumps({"text": text}).encode() for text in texts]
    lines[7], lines[11], lines[20] = b'{"text": "no end', b'{"text": null}', b'{"text": "\xff?"}'
    path.write_bytes(b"\n".join(lines) + b"\n")
    told = []
    for mode in ("skip", "repair"):
        steps = [{"length": {"min": 8}}, {"unicode": {}}] if mode == "skip" else []
        recipe = data([Source(path=str(path), holdout=0.1)], on_error=mode, filters=steps)
        for tokenized in (False, True):
            if tokenized:
                tokenize_sources(recipe)
            with loader(recipe) as opened:
                found = [rows(next(opened)) for _ in range(9)]
                (counts,) = opened.stats()["sources"]
                assert isinstance(opened._sources[0], TokenizedSource) is tokenized
            told.append((found, {name: counts[name] for name in ("rows", "skipped", "left_out", "epochs")}))
        for folder in tokenized_root().iterdir():
            for file in folder.iterdir():
                file.unlink()
            folder.rmdir()
    assert told[0] == told[1]
    assert told[2] == told[3]
    assert told[0][1]["left_out"]["unusable"] > 0
    assert told[0][1]["left_out"]["filtered"]
    assert "train.jsonl, row" in told[1][1]["left_out"]["named"][0]
    stops = data([Source(path=str(path))], on_error="stop")
    tokenize_sources(stops)
    with pytest.raises(DataError, match="row 8: "):
        batches(stops, 9, streams=1)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "TASK_BYTES", 700)
    monkeypatch.setattr(writing, "SHARD_TOKENS", 150)
    monkeypatch.setattr(writing, "_ROWS", 4)


@pytest.mark.usefixtures("small_parts")
def test_a_killed_call_goes_on_and_makes_the_same_files(
    tmp_path: Path, recipe: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    (expected,) = tokenize_sources(recipe, whole)
    assert len(expected.shards) > 8
    assert len({shard.task for shard in expected.shards}) > 2

    class KilledError(BaseException):
        pass

    finished = writing.ShardWriter.finish
    encoded = 0

    def finish(self: writing.ShardWriter, *, is_last: bool) -> Any:
        nonlocal encoded
        encoded += 1
        if encoded % 3 == 0:
            raise KilledError
        return finished(self, is_last=is_last)

    monkeypatch.setattr(writing.ShardWriter, "finish", finish)
    attempts, made = 0, []
    while not made:
        attempts += 1
        try:
            made = tokenize_sources(recipe, tmp_path / "again")
        except KilledError:
            assert not list((tmp_path / "again").glob("*/manifest.json"))
            assert not list((tmp_path / "again").glob("*/.*.partial"))
    assert attempts > 3
    assert made[0].shards == expected.shards
    assert made[0].units == expected.units
    source = data([Source(path=str(next((tmp_path / "again").iterdir())))])
    assert [rows(batch) for batch in batches(source, 30)] == [rows(batch) for batch in batches(recipe, 30)]


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_keeps_finished_shards_and_leaves_no_half_one(
    tmp_path: Path, recipe: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = writing.ShardWriter.add
    calls = 0

    def add(self: writing.ShardWriter, *arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        added(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(writing.ShardWriter, "add", add)
        with pytest.raises(DataError, match=r"no space is left.*finished shards are kept.*--to"):
            tokenize(recipe_of(recipe), lambda _: None, local=True, workers=1)
    (folder,) = tokenized_root().iterdir()
    shards = {path: path.stat().st_mtime_ns for path in folder.glob("*.tokens")}
    assert len(shards) > 2
    assert not list(folder.glob(".*.partial"))
    assert not is_read(recipe)
    reports: list[Any] = []
    (made,) = tokenize(recipe_of(recipe), reports.append, local=True, workers=1)
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert made.is_new
    assert reports[-1].counts.tokens == made.manifest.counts.tokens
    assert is_read(recipe)
    (again,) = tokenize(recipe_of(recipe), reports.append, local=True)
    assert (again.is_new, again.folder) == (False, made.folder)


def test_listed_documents_are_excluded_as_in_streaming(tmp_path: Path, recipe: Data) -> None:
    listed = tmp_path / "listed.txt"
    hashes = [content_hash(text) for text in documents(60)[5:40]]
    listed.write_text("\n".join(hashes) + "\n")
    without = data([recipe.train[0].model_copy(update={"exclude": str(listed)})])
    expected = [rows(batch) for batch in batches(without, 20)]
    assert expected != [rows(batch) for batch in batches(recipe, 20)]
    tokenize_sources(recipe)
    assert is_read(without), "the list is no part of the address"
    assert [rows(batch) for batch in batches(without, 20)] == expected
    (folder,) = tokenized_root().iterdir()
    alone = data([Source(path=str(folder), exclude=str(listed))])
    assert [rows(batch) for batch in batches(alone, 20)] == expected


def test_two_calls_do_not_write_the_same_set(recipe: Data) -> None:
    prepared = making.prepare_set(recipe_of(recipe), recipe.train[0], tokenized_root(), training=True)
    assert isinstance(prepared, making.Prepared)
    with making.locked(prepared.work.folder), pytest.raises(UsageError, match="another process is making"):
        tokenize(recipe_of(recipe), lambda _: None, local=True, workers=1)


def test_a_source_that_changes_meanwhile_is_refused(tmp_path: Path, recipe: Data) -> None:
    prepared = making.prepare_set(recipe_of(recipe), recipe.train[0], tokenized_root(), training=True)
    assert isinstance(prepared, making.Prepared)
    os.utime(tmp_path / "part-001.jsonl", ns=(1, 1))
    with pytest.raises(DataError, match="was changed meanwhile"):
        making.run_task(prepared.work, prepared.tasks[0])
    with pytest.raises(DataError, match="1 parts are not done"):
        making.finish_set(prepared, 0.0)


def test_a_set_alone_needs_neither_text_nor_the_place_where_it_was_made(tmp_path: Path, recipe: Data) -> None:
    expected = [rows(batch) for batch in batches(recipe, 12, streams=8, global_batch=8)]
    tokenize_sources(recipe, tmp_path / "sets")
    (folder,) = (tmp_path / "sets").iterdir()
    for path in tmp_path.glob("*.jsonl"):
        path.unlink()
    moved = folder.rename(tmp_path / "moved")
    alone = data([Source(path=str(moved), holdout=0.0)])
    assert [rows(batch) for batch in batches(alone, 12, streams=8, global_batch=8)] == expected
    with pytest.raises(DataError, match=r"was tokenised with bytes, and the recipe's tokenizer makes other tokens"):
        batches(alone, 1, tokenizer=load_tokenizer("bytes", ["<extra>"]))
    assert check(recipe_of(data([Source(path=str(moved), holdout=0.1)]))) == []
    other = recipe_of(data([Source(path=str(moved), columns={"text": "body"})]), "bpe-docs-4k")
    messages = " ".join(message for _, message in check(other))
    assert "was tokenised with bytes, and the recipe's tokenizer is bpe-docs-4k" in messages
    assert "is for texts, and the data is token ids already" in messages


def masked_rows(recipe: Data, **masking: Any) -> list[dict[str, list[list[int]]]]:
    inputs = FormatInputs(recipe, load_tokenizer("wordpiece-docs-4k"), masking=Masking(**masking))
    with_loader = TrainLoader(inputs, objective="masked_lm", global_batch=4, streams=4, seed=3, dp_rank=0, dp_size=1)
    try:
        made = [next(with_loader) for _ in range(5)]
    finally:
        with_loader.close()
    return [{name: batch.micro_batches[0][name].tolist() for name in ("input_ids", "labels")} for batch in made]


@pytest.mark.parametrize("isolate", [True, False])
def test_masked_rows_are_those_of_the_text(tmp_path: Path, isolate: bool) -> None:
    texts = [f"the function returns {n} values and raises an error if {n * 7} are given" for n in range(50)]
    recipe = data([Source(path=write_jsonl(tmp_path, [texts]))], isolate_documents=isolate)
    expected, whole_words = masked_rows(recipe), masked_rows(recipe, whole_word=True)
    tokenize_sources(recipe, tokenizer="wordpiece-docs-4k")
    always = recipe.model_copy(update={"tokenized": "always"})
    assert masked_rows(always) == expected
    assert masked_rows(recipe, whole_word=True) == whole_words, "tokens have no words, so the text is read"
    with pytest.raises(DataError, match="whole_word needs the words of a text"):
        masked_rows(always, whole_word=True)
    (folder,) = tokenized_root().iterdir()
    with pytest.raises(DataError, match=r"holds token ids, which masked_lm cannot read: masking.whole_word"):
        masked_rows(data([Source(path=str(folder))]), whole_word=True)


def test_the_plan_says_that_tokens_are_read(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path, [documents(60)])
    recipe = recipe_of(data([Source(path=path, holdout=0.1)]))
    world = World(size=1, gpu=False)
    assert "tokenized" not in prepare(recipe, world).reasons
    tokenize_sources(recipe.data)
    assert "is read from tokenised data: 60 documents" in prepare(recipe, world).reasons["tokenized"]


def test_only_sets_of_its_tokenizer_concern_a_plan(tmp_path: Path) -> None:
    """A plan loads no tokenizer, which may lie on a hub, on account of other sets of the machine."""
    sources = [Source(path=write_jsonl(tmp_path, [documents(9)]))]
    assert not any_sets_of("bytes", sources)
    tokenize_sources(data(sources))
    assert any_sets_of("bytes", sources)
    assert any_sets_of("bytes", [Source(path="elsewhere/*.jsonl")]), "the same files may have another name"
    assert not any_sets_of("openai-community/gpt2", sources)


def test_a_set_of_an_embedded_corpus_concerns_only_plans_with_that_corpus(tmp_path: Path) -> None:
    corpus = [Source(source="python-docs")]
    tokenize_sources(data(corpus))
    assert any_sets_of("bytes", [Source(path="mine.jsonl"), *corpus])
    assert not any_sets_of("bytes", [Source(path="mine.jsonl"), Source(source="python-docstrings")])


def test_other_objectives_say_why_they_need_the_data_itself(tmp_path: Path, recipe: Data) -> None:
    other = recipe_of(recipe).model_copy(update={"objective": "instruction"})
    with pytest.raises(UsageError, match="instruction makes its rows from the data itself"):
        tokenize(other, lambda _: None, local=True)
    always = other.model_copy(update={"data": recipe.model_copy(update={"tokenized": "always"})})
    assert any(path == ("data", "tokenized") for path, _ in check(always))


def test_a_manifest_of_another_version_is_refused(tmp_path: Path, recipe: Data) -> None:
    tokenize_sources(recipe)
    (folder,) = tokenized_root().iterdir()
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="format version 2; this one reads 1"):
        read_manifest(folder)
    manifest.write_text("{}")
    with pytest.raises(DataError, match="is no manifest of tokenised data"):
        read_manifest(folder)
