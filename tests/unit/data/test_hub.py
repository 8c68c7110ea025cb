"""Data sets of a hub, through `datasets` itself: shards, configurations, revisions, tokens, and a hub that stumbles."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from support.images import png
from support.servers.hub import Hub, Repo, hub, repo
from support.servers.hub_client import Client, client

pytestmark = pytest.mark.slow

TEXTS = [f"document {number} " + "word " * (number % 40) for number in range(300)]
CARD = b"""---
configs:
- config_name: en
  data_files: [{split: train, path: en/*.jsonl}, {split: test, path: en-test.jsonl}]
- config_name: de
  data_files: de/*.jsonl
---
"""
DECLARED = b"""---
dataset_info:
  features:
  - {name: text, dtype: string}
  - {name: meta, dtype: int64}
---
"""
OLD, NEW = "b" * 40, "a" * 40


def parquet(columns: dict[str, Any], rows: int = 7) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=rows)
    return file.getvalue()


def jsonl(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def wav(samples: int) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(samples, 0.1, np.float32), 16_000, format="WAV")
    return file.getvalue()


def tar(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def of_texts(*texts: str) -> bytes:
    return jsonl(*({"text": text} for text in texts))


SHARDS = {f"data/train-{n:05}-of-00003.parquet": parquet({"text": TEXTS[n::3]}) for n in range(3)}
PICTURES = {f"train/{name}/{n}.png": png(np.full((2, 2), n, np.uint8)) for n, name in enumerate(("cat", "dog"), 1)}
REPOS = {
    "org/shards": repo({**SHARDS, "data/test-00000-of-00001.parquet": parquet({"text": ["t"]}), "README.md": b"# Set"}),
    "org/lines": repo({f"train-{n}.jsonl": of_texts(*TEXTS[n::2]) for n in range(2)}),
    "org/zipped": repo({"train.jsonl.gz": gzip.compress(of_texts(*TEXTS))}),
    "org/drift": repo(
        {
            "train-0.parquet": parquet({"text": ["a"], "meta": [1]}),
            "train-1.parquet": parquet({"meta": [{"x": "y"}], "text": ["b"]}),
        }
    ),
    "org/drifting-lines": repo(
        {
            "a.jsonl": jsonl({"text": "a", "meta": 1, "id": 1}),
            "b.jsonl": jsonl({"id": "A-7", "meta": {"x": "y"}, "text": "b"}, {"text": "c", "meta": [1]}),
        }
    ),
    "org/declared": repo(
        {
            "README.md": DECLARED,
            "a.jsonl": jsonl({"text": "a", "meta": 1}),
            "b.jsonl": jsonl({"meta": {"x": "y"}, "text": "b"}, {"text": 3}),
        }
    ),
    "org/words": repo({"train.csv": b"text,label\nNone,1\nNA,0\n007,1\n"}),
    "org/configs": repo(
        {
            "README.md": CARD,
            "en/a.jsonl": of_texts("e1"),
            "en/b.jsonl": of_texts("e2"),
            "en-test.jsonl": of_texts("et"),
            "de/a.jsonl": of_texts("d"),
        }
    ),
    "org/commits": Repo({OLD: {"a.jsonl": of_texts("old")}, NEW: {"a.jsonl": of_texts("new")}}, tags={"v1": OLD}),
    "org/private": repo({"a.jsonl": of_texts("secret")}, private="hf_good"),
    "org/gated": repo({"a.jsonl": of_texts("secret")}, gated=True),
    "org/text": repo({"a.txt": b"one\n\ntwo\n"}),
    "org/empty": repo({"README.md": b"# Nothing"}),
    "org/pictures": repo(PICTURES),
    "org/classes": repo({"no/a.wav": wav(160), "yes/a.wav": wav(320)}),
    "org/sounds": repo({"set-0.tar": tar({"0.wav": wav(160), "0.txt": b"one"})}),
    "org/clips": repo({"metadata.jsonl": jsonl({"file_name": "clips/a.wav", "text": "one"}), "clips/a.wav": wav(160)}),
}


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with hub(REPOS, seed=5) as running:
        yield running


@pytest.fixture(scope="module")
def reader(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with client(server.endpoint, tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(autouse=True)
def well(server: Hub) -> None:
    server.faults = 0.0


@pytest.mark.parametrize("name", ["org/shards", "org/lines", "org/zipped"])
@pytest.mark.parametrize("streams", [1, 2])
def test_all_shards_are_read_once_and_resumed_within(reader: Client, name: str, streams: int) -> None:
    for more in ({}, {"resume_at": 31}):
        found = reader.read(name, streams=streams, **more)
        assert sorted(found["rows"]) == sorted(TEXTS)
    assert found["fingerprint"] == {"source": name, "split": "train", "hub": name, "config": None, "revision": NEW}


def test_a_pass_asks_for_each_shard_a_few_times_whatever_the_streams(server: Hub, reader: Client) -> None:
    def asked(streams: int) -> int:
        before = len(server.asked)
        reader.read("org/shards", streams=streams)
        return len(server.asked) - before

    asked(1)
    assert asked(1) < 20


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("org/drift", ["a", "b"]),
        ("org/drifting-lines", ["a", "b", "c"]),
        ("org/declared", ["a", "b", "3"]),
        ("org/text", ["one", "two"]),
    ],
)
def test_columns_that_are_not_read_stop_nothing(reader: Client, name: str, rows: list[str]) -> None:
    assert [row for row in reader.read(name)["rows"] if row] == rows


def test_words_and_digits_of_a_csv_are_texts(reader: Client) -> None:
    found = reader.read("org/words", objective="text_classification")
    labels = [("None", 1), ("NA", 0), ("007", 1)]
    assert found["rows"] == [{"text": text, "label": label} for text, label in labels]


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({"config": "en"}, ["e1", "e2"]),
        ({"config": "en", "split": "test"}, ["et"]),
        ({"config": "de"}, ["d"]),
        ({"config": "fr"}, "BuilderConfig 'fr' not found. Available: ['en', 'de']"),
        ({}, "org/configs has several configurations, ['en', 'de']; set `config` to one."),
        ({"config": "en", "training": False}, "org/configs has no split 'validation'; it has train, test. Set `split`"),
    ],
)
def test_configurations_and_splits(reader: Client, options: dict[str, Any], rows: Any) -> None:
    found = reader.read("org/configs", **options)
    if isinstance(rows, list):
        assert found["rows"] == rows
    else:
        assert rows in found["error"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(reader: Client) -> None:
    for revision, text in ((None, "new"), ("main", "new"), ("v1", "old"), (OLD, "old")):
        found = reader.read("org/commits", revision=revision)
        assert found["rows"] == [text]
        assert found["fingerprint"]["revision"] == (OLD if text == "old" else NEW)
    assert reader.read("org/commits", revision="v9")["error"] == "org/commits has no revision 'v9' on the hub."


PRIVATE = "nor a data set that the hub shows you; check the name, or set HF_TOKEN to a token that may read it if it is"
GATED = "is gated: accept its terms on the hub, and set HF_TOKEN to a token of that account."


@pytest.mark.parametrize(
    ("path", "token", "told"),
    [
        ("org/private", None, PRIVATE),
        ("org/private", "hf_bad", PRIVATE),
        ("org/nothing", None, PRIVATE),
        ("org/gated", None, GATED),
        ("org/gated", "hf_other", GATED),
        ("org/empty", None, "org/empty cannot be read as a data set"),
        ("hf://datasets/org/private/a.jsonl", None, "is of no data set that the hub shows you; check the name, or set"),
        ("hf://datasets/org/gated/a.jsonl", "hf_other", GATED),
        ("hf://datasets/org/lines/none.jsonl", None, "hf://datasets/org/lines/none.jsonl: there is no such file."),
    ],
)
def test_what_the_hub_does_not_show_is_told_and_not_tried_again(
    server: Hub, reader: Client, path: str, token: str | None, told: str
) -> None:
    before = len(server.asked)
    found = reader.read(path, token=token)
    assert told in found["error"]
    assert "\n" not in found["error"]
    assert found["kind"] == "DataError"
    assert len(server.asked) - before < 12


def test_a_token_opens_what_is_private(reader: Client) -> None:
    for path in ("org/private", "hf://datasets/org/private/a.jsonl"):
        assert reader.read(path, token="hf_good")["rows"] == ["secret"]


def test_files_of_the_hub_by_their_address(reader: Client) -> None:
    assert sorted(reader.read("hf://datasets/org/lines/*.jsonl")["rows"]) == sorted(TEXTS)
    first = "hf://datasets/org/shards/data/train-00000-of-00003.parquet"
    assert reader.read(first, streams=2)["rows"] == TEXTS[0::3] or len(reader.read(first)["rows"]) == 100


def test_pictures_and_recordings_that_lie_beside_their_rows(reader: Client) -> None:
    found = reader.read("org/pictures", objective="image_classification")
    assert found["rows"] == [{"image": 1, "label": 0}, {"image": 2, "label": 1}]
    for path in ("org/clips", "hf://datasets/org/clips/metadata.jsonl"):
        assert reader.read(path, objective="speech_to_text")["rows"] == [{"audio": 160, "text": "one"}]
    assert reader.read("org/sounds", objective="speech_to_text")["rows"] == [{"audio": 160, "text": "one"}]
    found = reader.read("org/classes", objective="audio_classification")
    assert sorted(row["audio"] for row in found["rows"]) == [160, 320]
    assert {row["audio"]: row["label"] for row in found["rows"]} == {160: 0, 320: 1}


@pytest.mark.parametrize("kinds", [("500", "502", "503", "429"), ("drop",), ("cut",)])
def test_no_row_is_lost_while_the_hub_stumbles(server: Hub, reader: Client, kinds: tuple[str, ...]) -> None:
    for name in ("org/shards", "org/lines", "org/zipped"):
        server.kinds, server.faults, before = kinds, 0.3, server.met.total()
        assert sorted(reader.read(name, streams=2)["rows"]) == sorted(TEXTS)
        assert server.met.total() > before
    assert sum(server.met[kind] for kind in kinds) > 3


def test_retry_after_of_the_hub_is_waited(server: Hub, reader: Client) -> None:
    server.kinds, server.faults, server.retry_after = ("429",), 1.0, "3600"
    found = reader.read("org/lines", seconds=30.0)
    server.retry_after = "0"
    assert "the server answers 429 Too Many Requests and asks to wait 3600 s, after one try" in found["error"]
    assert found["kind"] == "UnavailableError"


@pytest.mark.parametrize(
    ("status", "told", "kind"),
    [
        ("503", "the server answers 503 Service Unavailable", "UnavailableError"),
        ("401", "org/lines: the hub takes no such token (401); set HF_TOKEN to one that may read it.", "DataError"),
        ("403", "the hub does not let this token read it (403); set HF_TOKEN to one that may", "DataError"),
    ],
)
def test_a_hub_that_stays_ill_or_refuses(server: Hub, reader: Client, status: str, told: str, kind: str) -> None:
    server.kinds, server.faults = (status,), 1.0
    found = reader.read("org/lines", seconds=0.2)
    assert told in found["error"]
    assert found["kind"] == kind
