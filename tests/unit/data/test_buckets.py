"""Files in a bucket: by their address and by a pattern, through s3fs, from a server of S3 on loopback."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardyard.data.media.images import decoded
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_for
from shardyard.data.stream.reader import START, ShareReader, share_of, with_shards
from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Source
from support.images import png

moto_server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
pytestmark = pytest.mark.slow

TEXTS = [f"document {number}" for number in range(90)]


def parquet(texts: list[str]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": texts, "n": list(range(len(texts)))}), file, row_group_size=7)
    return file.getvalue()


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


ROWS = [{"text": text} for text in TEXTS]
FILES = {
    "a.parquet": parquet(TEXTS),
    "shards/0.jsonl": jsonl(ROWS[0::2]),
    "shards/1.jsonl": jsonl(ROWS[1::2]),
    "zipped.jsonl.gz": gzip.compress(jsonl(ROWS)),
    "a.csv": ("text\n" + "".join(f"{text}\n" for text in TEXTS)).encode(),
    "pictures/rows.jsonl": jsonl([{"image": "7.png", "label": 1}]),
    "pictures/7.png": png(np.full((2, 2), 7, np.uint8)),
}


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    import boto3

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment = pytest.MonkeyPatch()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        environment.setenv(name, value)
    client = boto3.client("s3")
    client.create_bucket(Bucket="data")
    for name, content in FILES.items():
        client.put_object(Bucket="data", Key=name, Body=content)
    yield "s3://data"
    server.stop()
    environment.undo()


def read(path: str, streams: int = 1, objective: str = "causal_lm") -> list[Any]:
    opened = with_shards(open_for(objective_spec(objective), Source(path=path), training=True), streams)
    rows = []
    for stream in range(streams):
        reader = ShareReader(share_of(opened, stream, streams), Retry(5.0))
        reader.seek(START)
        while some := reader.read(40):
            rows += some
            reader.seek(reader.cursor())
        reader.close()
    return rows


@pytest.mark.parametrize("name", ["a.parquet", "shards/*.jsonl", "zipped.jsonl.gz", "a.csv"])
def test_every_kind_of_file_is_read_and_resumed(bucket: str, name: str) -> None:
    for streams in (1, 2):
        assert sorted(read(f"{bucket}/{name}", streams)) == sorted(TEXTS)


def test_pictures_beside_their_rows(bucket: str) -> None:
    (row,) = read(f"{bucket}/pictures/rows.jsonl", objective="image_classification")
    assert np.asarray(decoded(row["image"], "L")).mean() == 7


@pytest.mark.parametrize("path", ["data/none.jsonl", "data/none.parquet", "nothing/a.jsonl", "data/none-*.jsonl"])
def test_what_is_not_there_is_told(bucket: str, path: str) -> None:
    with pytest.raises(DataError) as caught:
        read(f"s3://{path}")
    assert f"s3://{path}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_keys_that_are_refused_are_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(s3fs.S3FileSystem, "_info", refuse)
    monkeypatch.setattr(s3fs.S3FileSystem, "_open", refuse)
    with pytest.raises(DataError, match=r"s3://data/a\.csv: access is denied \(Access Denied\); check the credentials"):
        read(f"{bucket}/a.csv")
