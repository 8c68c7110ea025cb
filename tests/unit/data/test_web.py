"""Sources on servers that stumble: each request is tried again, and what cannot be mended is said as what it is."""

from __future__ import annotations

import gzip
import io
import json
import random
import time
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.utils import httpx

from shardyard.data.sources import retry as retries
from shardyard.data.sources import web
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_source
from shardyard.data.sources.web import Tries, Web, retry_after_seconds
from shardyard.data.stream.loader import TrainLoader
from shardyard.data.stream.reader import ShareReader, share_of, with_shards
from shardyard.data.tables import remote
from shardyard.errors import DataError, UnavailableError
from shardyard.recipe.schema import Data, Source
from support.data_cases import batches, data
from support.servers.stumbling import FAULTS, Server, serving

TEXTS = [f"document {number} " + "word " * (number % 40) for number in range(300)]


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), file, row_group_size=40)
    return file.getvalue()


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


CONTENTS = {
    "a.parquet": parquet(TEXTS),
    "a.jsonl": jsonl(TEXTS),
    "a.jsonl.gz": gzip.compress(jsonl(TEXTS)),
    "a.csv": ("text\n" + "".join(f"{text}\n" for text in TEXTS)).encode(),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retries, "FIRST_SECONDS", 0.001)
    monkeypatch.setattr(retries, "LONGEST_SECONDS", 0.02)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(CONTENTS) as running:
        yield running


def read(url: str, *, streams: int = 2, seconds: float = 60.0) -> list[str]:
    """All texts of a source, stream by stream, in the order of their numbers."""
    retry = Retry(seconds)
    source = with_shards(open_source(Source(path=url), training=True, retry=retry), streams, retry)
    texts = []
    for stream in range(streams):
        reader = ShareReader(share_of(source, stream, streams), retry)
        texts += [str(example) for example in reader.read(10**6)]
        reader.close()
    return sorted(texts, key=lambda text: int(text.split()[1]))


@pytest.mark.parametrize("name", CONTENTS)
def test_every_second_request_may_fail_and_no_document_is_lost(name: str) -> None:
    before, failed, certain = web.WEB.count, 0, 0
    for seed, faults in enumerate((0.2, 0.3, 0.4, 0.5), start=1):
        with serving(CONTENTS, seed=seed) as server:
            server.faults = faults
            assert [text.strip() for text in read(server.url(name))] == [text.strip() for text in TEXTS]
            failed += sum(server.met[kind] for kind in FAULTS)
            certain += sum(server.met[kind] for kind in FAULTS if kind.isdigit())
    assert failed > 3
    # Each answer that says to come again is counted; aiohttp itself may repeat one whose connection broke.
    assert certain <= web.WEB.count - before <= failed


@pytest.mark.parametrize("kind", FAULTS)
def test_the_first_requests_may_fail_too(kind: str) -> None:
    with serving(CONTENTS, ranges=False) as server:
        server.kinds, server.faults = (kind,), 1.0
        fate = server.fate

        def first_three() -> str:
            found = fate()
            server.faults = 0.0 if server.met[kind] >= 3 else 1.0
            return found

        server.fate = first_three  # type: ignore[method-assign]
        assert len(read(server.url("a.jsonl"), streams=1)) == len(TEXTS)
        assert server.met[kind] == 3


def test_the_loader_counts_requests_that_were_repeated(server: Server) -> None:
    from shardyard.data.formats import FormatInputs
    from shardyard.data.tokenizers.tokenizer import load_tokenizer

    server.faults = 0.8
    data = Data(train=[Source(path=server.url("a.parquet"))], sequence_length=32, retry_seconds=60)
    context = FormatInputs(data, load_tokenizer("bytes"))
    with_faults = TrainLoader(context, global_batch=4, streams=4, seed=7, dp_rank=0, dp_size=1)
    try:
        before = with_faults.stats()["retries"]
        assert before >= 1
        next(with_faults)
    finally:
        with_faults.close()


def test_the_number_of_requests_does_not_grow_with_the_streams() -> None:
    texts = [f"<{n}:{'x' * 300}>" for n in range(3000)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    groups = io.BytesIO()
    pq.write_table(pa.table({"text": texts}), groups, row_group_size=150)
    contents = {"a.jsonl": lines, "a.jsonl.gz": gzip.compress(lines), "a.parquet": groups.getvalue()}
    for name in contents:
        asked = []
        for streams in (1, 16):
            with serving(contents) as found:
                recipe = data([Source(path=found.url(name))], sequence_length=256, shuffle_window=16, prefetch=1)
                batches(recipe, 2, streams=streams, global_batch=16)
                asked.append(found.met["good"])
        assert asked[1] <= 1.1 * asked[0], (name, asked)
        assert asked[0] <= 5, name


def test_ranges_of_a_remote_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "LEAST_BYTES", 100)
    monkeypatch.setattr(remote, "KEPT_BYTES", 300)
    content = random.Random(1).randbytes(1000)
    for ranges in (True, False):
        with serving({"a": content}, ranges=ranges) as found:
            file = remote.RemoteFile(found.url("a"))
            before = found.met["good"]
            reader = remote.RemoteReader(file)
            assert reader.seek(-30, io.SEEK_END) == 970
            assert reader.read(10) + reader.read() == content[970:]
            for begin, end in [(0, 10), (10, 100), (90, 110), (300, 700), (950, 2000), (0, 5), (5, 5)]:
                assert file.read(begin, end) == content[begin:end]
            # The end and the beginning are asked for once, and what is too large is not kept.
            assert found.met["good"] - before == 4


@pytest.mark.parametrize(("status", "text"), [("503", "503 Service Unavailable"), ("429", "429 Too Many Requests")])
def test_a_server_that_stays_ill_may_be_well_later(server: Server, status: str, text: str) -> None:
    server.kinds, server.faults = (status,), 1.0
    began = time.monotonic()
    with pytest.raises(
        UnavailableError, match=rf"the server answers {text}.*tries.*data\.retry_seconds is 0\.3\)"
    ) as c:
        read(server.url("a.parquet?token=secret"), seconds=0.3)
    assert "secret" not in str(c.value)
    assert "hub" not in str(c.value)
    # One limit for all requests that opening it takes, and not one for each.
    assert time.monotonic() - began < 5.0


def test_reading_that_stays_ill_is_of_the_same_kind(server: Server) -> None:
    retry = Retry(0.2)
    source = open_source(Source(path=server.url("a.jsonl")), training=True, retry=retry)
    reader = ShareReader(share_of(source, 0, 1), retry)
    server.kinds, server.faults = ("500",), 1.0
    with pytest.raises(UnavailableError, match="500 Internal Server Error"):
        reader.read(1)


def test_a_server_that_went_away_may_come_back(server: Server) -> None:
    retry = Retry(0.2)
    source = open_source(Source(path=server.url("a.jsonl")), training=True, retry=retry)
    reader = ShareReader(share_of(source, 0, 1), retry)
    server.kinds, server.faults = ("drop",), 1.0
    with pytest.raises(UnavailableError):
        reader.read(1)


@pytest.mark.parametrize(("status", "text"), [("401", "wants a token"), ("403", "forbids"), ("404", "no such file")])
def test_what_a_server_refuses_is_said_soon(server: Server, status: str, text: str) -> None:
    """And not tried again, except that a missing file may be a mistake."""
    server.kinds, server.faults = (status,), 1.0
    before = web.WEB.count
    with pytest.raises(DataError, match=rf"a\.parquet: the server answers {status}: it .*{text}") as caught:
        read(server.url("a.parquet"))
    assert not isinstance(caught.value, UnavailableError)
    asked_again = web.WEB.count - before
    assert asked_again == (0 if status != "404" else asked_again)
    assert asked_again <= server.met["404"] <= 4 * web.NOT_FOUND_TRIES


@pytest.mark.parametrize("name", ["a.parquet", "a.jsonl"])
def test_a_file_that_is_said_to_be_missing_now_and_then_is_read(name: str) -> None:
    for seed in range(5):
        with serving(CONTENTS, seed=seed) as server:
            server.kinds, server.faults = ("404", "500", "drop", "cut"), 0.2
            assert [text.strip() for text in read(server.url(name))] == [text.strip() for text in TEXTS]


def test_a_missing_file_is_asked_for_again_if_it_was_there_or_a_recipe_names_it() -> None:
    known = Web()
    tries = Tries("http://a/x?token=1", known)
    assert tries.answer(404, {}) is None, "one of many places where a file may be"
    exact = Tries("http://a/x", known, exact=True)
    waits = [exact.answer(404, {}) for _ in range(web.NOT_FOUND_TRIES + 1)]
    assert [wait is None for wait in waits] == [False] * web.NOT_FOUND_TRIES + [True]
    assert tries.answer(200, {}) is None
    again = Tries("http://a/x?token=2", known)
    assert all(again.answer(404, {}) is not None for _ in range(10)), "until the limit"
    known.limit_seconds = 0.0
    with pytest.raises(UnavailableError, match="404 Not Found"):
        again.answer(404, {})


def test_a_missing_file_with_another_cause_may_be_there() -> None:
    lost = FileNotFoundError("http://a/x")
    assert not retries.may_pass(lost)
    lost.__cause__ = ConnectionResetError("reset")
    assert retries.may_pass(lost)
    lost.__cause__ = FileNotFoundError("http://a/x")
    assert not retries.may_pass(lost)


def test_a_host_that_never_answered_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(CONTENTS) as gone:
        url = gone.url("a.parquet")
    monkeypatch.setattr(web, "UNREACHED_SECONDS", 0.1)
    with pytest.raises(DataError, match=r"cannot be reached.*Check the address and the network") as caught:
        read(url)
    assert not isinstance(caught.value, UnavailableError)


def test_what_retry_after_asks_for_is_waited(server: Server) -> None:
    server.kinds, server.faults, server.retry_after = ("429",), 1.0, "1"
    fate, began = server.fate, time.monotonic()

    def once() -> str:
        found = fate()
        server.faults = 0.0
        return found

    server.fate = once  # type: ignore[method-assign]
    assert len(read(server.url("a.jsonl"), streams=1)) == len(TEXTS)
    assert time.monotonic() - began >= 1.0


def test_a_wait_that_is_longer_than_allowed_ends_at_once() -> None:
    tries = Tries("https://user:pass@host.example/a?key=secret", Web())
    with pytest.raises(UnavailableError, match=r"^https://host\.example/a: .* asks to wait 3600 s, after one try"):
        tries.answer(429, {"Retry-After": "3600"})


def test_after_a_host_was_given_up_the_next_request_is_tried_once() -> None:
    found = Web()
    found.limit_seconds = 0.0
    with pytest.raises(UnavailableError):
        Tries("http://host/a", found).answer(500, {})
    found.limit_seconds = 60.0
    with pytest.raises(UnavailableError, match="after one try"):
        Tries("http://host/b", found).answer(500, {})
    assert Tries("http://other/b", found).answer(500, {}) is not None
    assert Tries("http://host/b", found).answer(200, {}) is None
    assert Tries("http://host/b", found).answer(500, {}) is not None
    assert found.count == 2


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(None, 0), ("7", 7), ("-7", 0), ("soon", 0), ("Wed, 21 Oct 2015 07:28:00 GMT", 0), ("", 0)],
)
def test_retry_after_is_a_number_or_a_date(value: str | None, seconds: float) -> None:
    assert retry_after_seconds(value, now=1.6e9) == seconds
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT", now=1445412470.0) == 10.0


def test_requests_of_the_hub_are_tried_again(server: Server) -> None:
    web.be_patient(60.0)
    client = web._hub_client()
    server.kinds, server.faults = ("500", "503", "drop", "429"), 0.5
    for _ in range(20):
        assert client.get(server.url("a.csv")).content == CONTENTS["a.csv"]
    assert sum(server.met[kind] for kind in server.kinds) > 3
    server.faults = 1.0
    web.be_patient(0.05)
    with pytest.raises(UnavailableError):
        client.get(server.url("a.csv"))
    assert isinstance(client, httpx.Client)
    client.close()
