"""Every layout of local data: the columns that are recognised for an objective, and the rows that are read."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import tarfile
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from shardyard.data.media.audio import read_audio
from shardyard.data.media.images import decoded
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import OpenSource, open_for, open_source
from shardyard.data.stream.reader import START, ShareReader, share_of, with_shards
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.schema import Source
from support.images import png

Made = tuple[Source, str, dict[str, str], list[Any]]


def wav(level: int) -> bytes:
    """A hundredth of a second at 16 kHz, all of one level."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(16_000)
        out.writeframes(np.full(160, level, "<i2").tobytes())
    return file.getvalue()


def picture(level: int) -> bytes:
    return png(np.full((2, 2), level, np.uint8))


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(opened: OpenSource, on_error: Any = "stop") -> list[Any]:
    reader = ShareReader(share_of(opened, 0, 1), Retry(), on_error)
    reader.seek(START)
    try:
        return reader.read(10_000)
    finally:
        reader.close()


def seen(example: Any) -> Any:
    """An example with its picture or recording as the level that fills it."""
    if not isinstance(example, dict):
        return example
    return {role: _level(role, value) for role, value in example.items()}


def _level(role: str, value: Any) -> Any:
    if role == "image":
        return int(np.asarray(decoded(value, "L")).mean())
    return round(float(read_audio(value).mean()) * 32768) if role == "audio" else value


TEXTS = ["one", "two\nlines", "drei, größer"]
LINES = "".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(TEXTS)).encode()


def texts(path: Path | str, **options: Any) -> Made:
    return Source(path=str(path), **options), "causal_lm", {"text": "text"}, TEXTS


def zstd(content: bytes) -> bytes:
    return bytes(pa.compress(content, "zstd", asbytes=True))


def compressed(suffix: str, compress: Callable[[bytes], bytes]) -> Callable[[Path], Made]:
    def made(folder: Path) -> Made:
        return texts(write(folder / f"rows.jsonl{suffix}", compress(LINES)))

    return made


def in_brackets(pattern: str) -> Callable[[Path], Made]:
    def made(folder: Path) -> Made:
        write(folder / "data [v2] {a}" / "train.jsonl", LINES)
        return texts(folder / pattern)

    return made


def columns_of_an_object(folder: Path) -> Made:
    return texts(write(folder / "rows.json", json.dumps({"text": TEXTS, "n": [0, 1, 2]}, indent=1)))


def a_list_within_an_object(folder: Path) -> Made:
    rows = [{"text": text} for text in TEXTS]
    return texts(write(folder / "rows.json", json.dumps({"version": 1, "data": rows}, indent=1)))


def json_of_texts(folder: Path) -> Made:
    return texts(write(folder / "rows.json", json.dumps(TEXTS)))


def csv(suffix: str, delimiter: str) -> Callable[[Path], Made]:
    def made(folder: Path) -> Made:
        header = delimiter.join(("n", "text"))
        cells = ("1", '"one"', "2", '"two\nlines"', "3", '"drei, größer"')
        rows = "".join(f"{cells[n]}{delimiter}{cells[n + 1]}\n" for n in (0, 2, 4))
        return texts(write(folder / f"rows{suffix}", f"\ufeff{header}\n\n{rows}"))

    return made


def tsv_with_quotes(folder: Path) -> Made:
    rows = ['"Stop', 'he said "no" to', '"']
    made = write(folder / "rows.tsv", "text\tn\n" + "".join(f"{row}\t1\n" for row in rows))
    return Source(path=str(made)), "causal_lm", {"text": "text"}, rows


def missing_words(folder: Path) -> Made:
    words = ["None", "NA", "null", "nan", "N/A", "yes it is", "no it is not", "maybe so"]
    path = write(folder / "rows.csv", "text,label\n" + "".join(f"{word},{n % 2}\n" for n, word in enumerate(words)))
    rows = [{"text": word, "label": n % 2} for n, word in enumerate(words)]
    return Source(path=str(path)), "text_classification", {"text": "text", "label": "label"}, rows


def digits_as_texts(folder: Path) -> Made:
    path = write(folder / "rows.csv", "body,label\n007,0\n1e5,1\n2020-01-01,0\nTrue,1\n")
    rows = [{"text": text, "label": n % 2} for n, text in enumerate(["007", "1e5", "2020-01-01", "True"])]
    source = Source(path=str(path), columns={"text": "body"})
    return source, "text_classification", {"text": "body", "label": "label"}, rows


def labels_by_name(folder: Path) -> Made:
    path = write(folder / "rows.csv", "text,label\na,dog\nb, cat\nc,dog\n")
    rows = [{"text": text, "label": label} for text, label in zip("abc", ("dog", "cat", "dog"), strict=True)]
    return Source(path=str(path)), "text_classification", {"text": "text", "label": "label"}, rows


def json_of_other_types(folder: Path) -> Made:
    path = write(folder / "rows.jsonl", '{"text": 7}\n{"text": true}\n{"text": "2020-01-01"}\n{"text": 1.5}\n')
    return Source(path=str(path)), "causal_lm", {"text": "text"}, ["7", "true", "2020-01-01", "1.5"]


def parquet_of_dates(folder: Path) -> Made:
    import datetime

    pq.write_table(pa.table({"text": [datetime.date(2020, 1, 2), None]}), folder / "rows.parquet")
    return Source(path=str(folder / "rows.parquet")), "causal_lm", {"text": "text"}, ["2020-01-02"]


def unread_columns_that_differ(folder: Path) -> Made:
    write(folder / "a.jsonl", '{"text": "a", "meta": null, "id": 1}\n{"text": "b", "meta": null, "id": 2}\n')
    write(folder / "b.jsonl", '{"text": "c", "meta": {"url": "u"}}\n{"id": "A-7", "text": "d", "meta": [1]}\n')
    return Source(path=str(folder / "*.jsonl")), "causal_lm", {"text": "text"}, ["a", "b", "c", "d"]


def unread_columns_of_parquet(folder: Path) -> Made:
    pq.write_table(pa.table({"text": ["a"], "meta": [1]}), folder / "a.parquet")
    pq.write_table(pa.table({"meta": [{"x": "y"}], "text": ["b"]}), folder / "b.parquet")
    return Source(path=str(folder)), "causal_lm", {"text": "text"}, ["a", "b"]


def conversations_that_differ(folder: Path) -> Made:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    weighted = [turns[0], {**turns[1], "weight": 0}]
    write(folder / "a.jsonl", json.dumps({"messages": turns}))
    write(folder / "b.jsonl", json.dumps({"messages": weighted}))
    rows = [{"messages": turns}, {"messages": weighted}]
    return Source(path=str(folder)), "instruction", {"messages": "messages"}, rows


BOOK = "# One\nfirst line\n\nsecond paragraph\n# Two\nthird\n"


def book(documents: Any, expected: list[str]) -> Callable[[Path], Made]:
    def made(folder: Path) -> Made:
        path = write(folder / "book.txt", BOOK.replace("\n", "\r\n"))
        return Source(path=str(path), documents=documents), "causal_lm", {"text": "text"}, expected

    return made


def folder_of_texts(folder: Path) -> Made:
    write(folder / "a.txt", "one")
    write(folder / "sub" / "b.txt.gz", gzip.compress(b"two"))
    return Source(path=str(folder)), "causal_lm", {"text": "text"}, ["one", "two"]


IMAGE_LABEL = {"image": "image", "label": "label"}


def image_folder(folder: Path) -> Made:
    for index, name in enumerate(("cat", "dog")):
        write(folder / "train" / name / "x.png", picture(10 + index))
        write(folder / "test" / name / "x.png", picture(20 + index))
    rows = [{"image": 10, "label": 0}, {"image": 11, "label": 1}]
    return Source(path=str(folder)), "image_classification", IMAGE_LABEL, rows


def image_folder_with_metadata(folder: Path) -> Made:
    write(folder / "a b.png", picture(3))
    write(folder / "sub" / "c.png", picture(4))
    write(folder / "metadata.csv", 'file_name,text\na b.png,"a, b"\nsub/c.png,c\n')
    rows = [{"image": 3, "text": "a, b"}, {"image": 4, "text": "c"}]
    return Source(path=str(folder)), "contrastive", {"image": "file_name", "text": "text"}, rows


def audio_folder(folder: Path) -> Made:
    for index, name in enumerate(("no", "yes")):
        write(folder / name / "x.wav", wav(100 * (index + 1)))
    rows = [{"audio": 200, "label": 1}, {"audio": 100, "label": 0}]
    return Source(path=str(folder)), "audio_classification", {"audio": "audio", "label": "label"}, rows


def csv_of_pictures(folder: Path) -> Made:
    write(folder / "pictures" / "a.png", picture(3))
    path = write(folder / "rows.csv", "img,caption,n\npictures/a.png,an a,1\n")
    return Source(path=str(path)), "contrastive", {"image": "img", "text": "caption"}, [{"image": 3, "text": "an a"}]


def parquet_of_pictures(folder: Path) -> Made:
    write(folder / "a.png", picture(3))
    pq.write_table(pa.table({"image": ["a.png"], "label": [1]}), folder / "rows.parquet")
    source = Source(path=str(folder / "rows.parquet"))
    return source, "image_classification", IMAGE_LABEL, [{"image": 3, "label": 1}]


def json_of_recordings(folder: Path) -> Made:
    write(folder / "a.wav", wav(50))
    row = {"audio_filepath": "a.wav", "duration": 0.01, "text": "hello"}
    path = write(folder / "manifest.jsonl", json.dumps(row))
    columns = {"audio": "audio_filepath", "text": "text"}
    return Source(path=str(path)), "speech_to_text", columns, [{"audio": 50, "text": "hello"}]


def common_voice(folder: Path) -> Made:
    write(folder / "clips" / "a.wav", wav(50))
    header = "client_id\tpath\tsentence\tup_votes\n"
    for name in ("train", "dev", "test"):
        write(folder / f"{name}.tsv", header + f'c\ta.wav\t"{name}" she said\t2\n')
    columns = {"audio": "path", "text": "sentence"}
    rows = [{"audio": 50, "text": '"dev" she said'}]
    return Source(path=str(folder), split="validation"), "speech_to_text", columns, rows


def librispeech(folder: Path) -> Made:
    for part, level in (("train-clean-100", 50), ("dev-clean", 60)):
        write(folder / "LibriSpeech" / part / "84" / "121" / "84-121-0000.wav", wav(level))
        write(folder / "LibriSpeech" / part / "84" / "121" / "84-121.trans.txt", f"84-121-0000 SAID {level}\n")
    columns = {"audio": "audio", "text": "text"}
    return Source(path=str(folder)), "speech_to_text", columns, [{"audio": 50, "text": "SAID 50"}]


def tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path


def webdataset(folder: Path) -> Made:
    members = [("a/0.png", picture(3)), ("a/0.cls", b"1\n"), ("a/1.png", picture(4)), ("a/1.cls", b"0")]
    tar(folder / "set-000.tar", members)
    rows = [{"image": 3, "label": 1}, {"image": 4, "label": 0}]
    return Source(path=str(folder / "*.tar")), "image_classification", {"image": "png", "label": "cls"}, rows


def webdataset_with_json(folder: Path) -> Made:
    tar(folder / "set.tar", [("0.jpg", picture(3)), ("0.json", b'{"caption": "three", "id": 7}')])
    source = Source(path=str(folder / "set.tar"), columns={"text": "json.caption"})
    return source, "contrastive", {"image": "jpg", "text": "json.caption"}, [{"image": 3, "text": "three"}]


def saved_to_disk(folder: Path) -> Made:
    both = {"train": datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3]})}
    datasets.DatasetDict({**both, "test": datasets.Dataset.from_dict({"text": ["t"], "n": [4]})}).save_to_disk(folder)
    return texts(folder)


def one_saved_to_disk(folder: Path) -> Made:
    datasets.Dataset.from_dict({"text": TEXTS, "n": [1, 2, 3]}).save_to_disk(folder / "set")
    return texts(folder / "set")


def feather_file(folder: Path) -> Made:
    feather.write_feather(pa.table({"text": TEXTS}), folder / "rows.arrow")
    return texts(folder / "rows.arrow")


LAYOUTS: dict[str, Callable[[Path], Made]] = {
    "JSON lines, gzip": compressed(".gz", gzip.compress),
    "JSON lines, zstd": compressed(".zst", zstd),
    "JSON lines, zstd in two frames": compressed(".zst", lambda content: zstd(content[:40]) + zstd(content[40:])),
    "JSON lines, bzip2": compressed(".bz2", bz2.compress),
    "JSON lines, xz": compressed(".xz", lzma.compress),
    "ndjson": lambda folder: texts(write(folder / "rows.ndjson", LINES)),
    "brackets in a path": in_brackets("data [v2] {a}/train.jsonl"),
    "brackets in a folder": in_brackets("data [v2] {a}"),
    "brackets beside a pattern": in_brackets("data [v2] {a}/*.jsonl"),
    "brackets in a pattern": in_brackets("data [v*/tr*.jsonl"),
    "JSON, columns of an object": columns_of_an_object,
    "JSON, a list within an object": a_list_within_an_object,
    "JSON, a list of texts": json_of_texts,
    "CSV": csv(".csv", ","),
    "CSV with semicolons": csv(".csv", ";"),
    "TSV": csv(".tsv", "\t"),
    "TSV with quotes in its texts": tsv_with_quotes,
    "words that stand for nothing elsewhere": missing_words,
    "digits, dates and booleans in a CSV": digits_as_texts,
    "classes by name": labels_by_name,
    "digits, dates and booleans in JSON": json_of_other_types,
    "dates in Parquet": parquet_of_dates,
    "unread columns of other types": unread_columns_that_differ,
    "unread columns of other types in Parquet": unread_columns_of_parquet,
    "conversations with other keys": conversations_that_differ,
    "a text": book(None, [BOOK]),
    "a text by lines": book("lines", [line for line in BOOK.split("\n") if line]),
    "a text by paragraphs": book("paragraphs", ["# One\nfirst line", "second paragraph\n# Two\nthird\n"]),
    "a text by length": book(20, ["# One\nfirst line\n\n", "second paragraph\n", "# Two\nthird\n"]),
    "a text by pattern": book("/^# /", ["# One\nfirst line\n\nsecond paragraph\n", "# Two\nthird\n"]),
    "a folder of texts": folder_of_texts,
    "ImageFolder": image_folder,
    "ImageFolder with a metadata file": image_folder_with_metadata,
    "AudioFolder": audio_folder,
    "CSV of pictures": csv_of_pictures,
    "Parquet of pictures": parquet_of_pictures,
    "JSON lines of recordings": json_of_recordings,
    "Common Voice": common_voice,
    "LibriSpeech": librispeech,
    "WebDataset": webdataset,
    "WebDataset with JSON": webdataset_with_json,
    "save_to_disk": saved_to_disk,
    "save_to_disk of one split": one_saved_to_disk,
    "Feather": feather_file,
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_are_recognised(tmp_path: Path, name: str) -> None:
    source, objective, columns, rows = LAYOUTS[name](tmp_path)
    opened = open_for(objective_spec(objective), source, training=True)
    assert opened.columns == columns
    found = [seen(example) for example in read(opened)]
    assert found == rows


@pytest.mark.parametrize("name", ["JSON lines, zstd", "CSV", "WebDataset", "save_to_disk", "ImageFolder"])
def test_streams_share_the_rows_and_resume(tmp_path: Path, name: str) -> None:
    source, objective, _, rows = LAYOUTS[name](tmp_path)
    opened = with_shards(open_for(objective_spec(objective), source, training=True), 2)
    found = []
    for stream in range(2):
        reader = ShareReader(share_of(opened, stream, 2), Retry())
        reader.seek(START)
        while some := reader.read(1):
            found += [seen(example) for example in some]
            reader.seek(reader.cursor())
    assert sorted(map(str, found)) == sorted(map(str, rows))


def test_tables_of_parquet_are_those_of_datasets(tmp_path: Path) -> None:
    """States of `datasets` in older checkpoints refer to them."""
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": [f"t{n}" for n in range(1000)]}), path, row_group_size=300)
    own = open_source(Source(path=str(path)), training=True).dataset
    other = datasets.load_dataset("parquet", data_files=[str(path)], split="train", streaming=True)
    for dataset in (own, other):
        assert (dataset.num_shards, dataset.reshard().num_shards) == (1, 4)
    iterated = [dataset.with_format("arrow") for dataset in (own, other)]
    states = []
    for dataset in iterated:
        rows = iter(dataset.iter(batch_size=256))
        states.append([(len(next(rows)), dataset.state_dict()) for _ in range(3)])
    assert states[0] == states[1]


def test_tables_of_jsonl_are_those_of_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", b"".join(b'{"text": "%s"}\n' % (b"x" * 400) for _ in range(3000)))
    own = open_source(Source(path=str(path)), training=True).dataset
    other = datasets.load_dataset("json", data_files=[str(path)], split="train", streaming=True)
    states = []
    for dataset in (own.with_format("arrow"), other.with_format("arrow")):
        rows = iter(dataset.iter(batch_size=256))
        states.append([(len(next(rows)), dataset.state_dict()) for _ in range(8)])
    assert states[0] == states[1]
