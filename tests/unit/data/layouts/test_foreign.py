"""Data sets as others publish them: the rows that are read without an objection of `validate`; or what it says."""

from __future__ import annotations

import datetime
import decimal
import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from shardyard.data.media.audio import read_audio
from shardyard.data.media.images import decoded
from shardyard.data.sources.retry import Retry
from shardyard.data.sources.sources import open_for
from shardyard.data.stream.reader import START, ShareReader, share_of
from shardyard.errors import DataError
from shardyard.objectives.registry import objective_spec
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Source
from support.images import png

# Writes into a folder and names what a recipe names.
Write = Callable[[Path], Path]
Case = tuple[Write, str, list[Any]]
FAMILIES = {
    "image_classification": "vit",
    "contrastive": "clip",
    "speech_to_text": "whisper",
    "vision_language": "llava",
    "seq2seq": "t5",
}


def picture(level: int) -> bytes:
    return png(np.full((2, 2), level, np.uint8))


def wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.full(160, 0.1, np.float32), 16_000, format="WAV")
    return file.getvalue()


def files(**contents: bytes | str) -> Write:
    """The named files; the first one is what is read."""

    def write(folder: Path) -> Path:
        for name, content in contents.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return folder / next(iter(contents))

    return write


def below(write: Write, name: str = ".") -> Write:
    """The folder or pattern instead of the first file."""

    def written(folder: Path) -> Path:
        write(folder)
        return folder / name

    return written


def lines(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def tar(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
TALK = [{"messages": TURNS}]
SQUAD = {
    "version": "2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "the cat",
                    "qas": [
                        {"id": "1", "question": "who?", "answers": [{"text": "cat", "answer_start": 4}]},
                        {"id": "2", "question": "why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}
ANSWERS = [
    {"question": "who?", "context": "the cat", "answers": {"text": ["cat"], "answer_start": [4]}},
    {"question": "why?", "context": "the cat", "answers": {"text": [], "answer_start": []}},
]
COCO = {
    "info": {},
    "images": [{"id": 7, "file_name": "7.png"}],
    "annotations": [{"image_id": 7, "id": 1, "caption": "one"}, {"image_id": 7, "id": 2, "caption": "two"}],
}
CAPTIONS = [{"image": 7, "text": "one"}, {"image": 7, "text": "two"}]
SEVEN = [{"image": 7, "label": 1}]
ZERO_ONE = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
EMBEDDED = 'messages\n"[{""role"": ""user"", ""content"": ""q""}, {""role"": ""assistant"", ""content"": ""a""}]"\n'
NOTHING = pa.array([], pa.string())
MOMENT = datetime.datetime(2020, 1, 2, 3)

CASES: dict[str, Case] = {
    "OpenOrca": (
        files(**{"a.jsonl": lines({"id": "1", "system_prompt": "", "question": "q", "response": "a"})}),
        "instruction",
        TALK,
    ),
    "dolly": (
        files(**{"a.jsonl": lines({"instruction": "q", "context": "", "response": "a", "category": "c"})}),
        "instruction",
        TALK,
    ),
    "Alpaca in a list": (
        files(**{"a.json": json.dumps([{"instruction": "q", "input": "", "output": "a"}], indent=1)}),
        "instruction",
        TALK,
    ),
    "messages as a JSON text": (files(**{"a.jsonl": lines({"messages": json.dumps(TURNS)})}), "instruction", TALK),
    "messages as JSON in a CSV": (files(**{"a.csv": EMBEDDED}), "instruction", TALK),
    "SQuAD, indented": (files(**{"a.json": json.dumps(SQUAD, indent=1)}), "question_answering", ANSWERS),
    "SQuAD on one line": (files(**{"a.json": json.dumps(SQUAD)}), "question_answering", ANSWERS),
    "SQuAD in Parquet": (
        files(**{"a.parquet": table(title=["t"], **{name: [ANSWERS[0][name]] for name in ANSWERS[0]})}),
        "question_answering",
        ANSWERS[:1],
    ),
    "COCO captions": (
        files(**{"captions.json": json.dumps(COCO), "train2017/7.png": picture(7)}),
        "contrastive",
        CAPTIONS,
    ),
    "Flickr with bars": (
        files(**{"a.csv": "image_name| comment_number| comment\n7.png| 0|one\n7.png| 1|two\n", "7.png": picture(7)}),
        "contrastive",
        CAPTIONS,
    ),
    "captions of a folder": (
        files(**{"a.csv": "image,caption\n7.png,one\n7.png,two\n", "Images/7.png": picture(7)}),
        "contrastive",
        CAPTIONS,
    ),
    "ImageNet in Parquet": (
        below(files(**{"train-0.parquet": table(image=[{"bytes": picture(7), "path": "a"}], label=[1])})),
        "image_classification",
        SEVEN,
    ),
    "bytes of pictures in Parquet": (
        files(**{"a.parquet": table(img=[picture(7)], label=[1], coarse=[3])}),
        "image_classification",
        SEVEN,
    ),
    "suffixes of any case": (
        below(files(**{"a/6.JPG": picture(7), "b/7.Png": picture(7), "b/.DS_Store": "x", "b/Thumbs.db": "x"})),
        "image_classification",
        [{"image": 7, "label": 0}, {"image": 7, "label": 1}],
    ),
    "WebDataset with JSON that differs": (
        files(
            **{
                "a.tar": tar(
                    ("./x/1.JPG", picture(7)),
                    ("./x/1.json", b'{"n": 1}'),
                    ("./x/1.txt", b"one"),
                    ("./x/2.jpg", picture(7)),
                    ("./x/2.json", b'{"n": "z"}'),
                    ("./x/2.txt", b"two"),
                )
            }
        ),
        "contrastive",
        CAPTIONS,
    ),
    "VoxPopuli": (
        files(**{"a.parquet": table(audio=[{"bytes": wav(), "path": "a"}], raw_text=[""], normalized_text=["one"])}),
        "speech_to_text",
        [{"audio": 160, "text": "one"}],
    ),
    "a NeMo manifest in .json": (
        files(
            **{"m.json": lines(*({"audio_filepath": "a.wav", "text": t} for t in ("one", "two"))), "wavs/a.wav": wav()}
        ),
        "speech_to_text",
        [{"audio": 160, "text": "one"}, {"audio": 160, "text": "two"}],
    ),
    "a byte-order mark": (files(**{"a.jsonl": b"\xef\xbb\xbf" + lines({"text": "a"}).encode()}), "causal_lm", ["a"]),
    "line ends of Windows": (
        files(**{"a.jsonl": lines({"text": "a"}, {"text": "b"}).replace("\n", "\r\n")}),
        "causal_lm",
        ["a", "b"],
    ),
    "line ends of old Macs": (files(**{"a.csv": "text,n\ra,1\rb,2\r"}), "causal_lm", ["a", "b"]),
    "UTF-16 CSV": (files(**{"a.csv": "text,n\na,1\nbö,2\n".encode("utf-16")}), "causal_lm", ["a", "bö"]),
    "UTF-16 JSON lines": (
        files(**{"a.jsonl": lines({"text": "a"}, {"text": "b"}).encode("utf-16")}),
        "causal_lm",
        ["a", "b"],
    ),
    "UTF-16 text": (files(**{"a.txt": "wörter".encode("utf-16")}), "causal_lm", ["wörter"]),
    "an empty JSON file first": (
        below(files(**{"a.jsonl": "", "b.jsonl": lines({"text": "b"})}), "*.jsonl"),
        "causal_lm",
        ["b"],
    ),
    "an empty CSV first": (below(files(**{"a.csv": "", "b.csv": "text\nb\n"}), "*.csv"), "causal_lm", ["b"]),
    "an empty Parquet first": (
        below(files(**{"a.parquet": table(text=NOTHING), "b.parquet": table(text=["b"])}), "*.parquet"),
        "causal_lm",
        ["b"],
    ),
    "brackets, spaces and signs in a path": (
        files(**{"my data (1) [x]/50%20 a?b#1.jsonl": lines({"text": "a"})}),
        "causal_lm",
        ["a"],
    ),
    "a suffix in capitals": (files(**{"A.JSONL.GZ": gzip.compress(lines({"text": "a"}).encode())}), "causal_lm", ["a"]),
    "labels of true and false in JSON": (
        files(**{"a.jsonl": lines({"text": "a", "label": True}, {"text": "b", "label": False})}),
        "text_classification",
        ZERO_ONE,
    ),
    "labels of true and false in Parquet": (
        files(**{"a.parquet": table(text=["a", "b"], label=[True, False])}),
        "text_classification",
        ZERO_ONE,
    ),
    "labels as floats": (
        files(**{"a.parquet": table(text=["a", "b"], label=[1.0, 0.0])}),
        "text_classification",
        ZERO_ONE,
    ),
    "spaces in a header": (files(**{"a.csv": " text , label \na,1\nb,0\n"}), "text_classification", ZERO_ONE),
    "an index without a name": (files(**{"a.csv": ",text,label\n0,a,1\n1,b,0\n"}), "text_classification", ZERO_ONE),
    "dictionary-encoded texts": (
        files(**{"a.parquet": table(text=pa.array(["a", "b"]).dictionary_encode(), label=[1, 0])}),
        "text_classification",
        ZERO_ONE,
    ),
    "decimals": (files(**{"a.parquet": table(text=[decimal.Decimal("1.50")])}), "causal_lm", ["1.50"]),
    "times": (files(**{"a.parquet": table(text=[MOMENT])}), "causal_lm", ["2020-01-02 03:00:00"]),
    "texts stored as bytes": (files(**{"a.parquet": table(text=["ö".encode()])}), "causal_lm", ["ö"]),
    "quotes and lines in cells": (files(**{"a.csv": '"text","n"\n"a ""b""\nc",1\n'}), "causal_lm", ['a "b"\nc']),
    "a header twice": (files(**{"a.csv": "text,text,n\na,b,1\n"}), "causal_lm", ["a"]),
}


def findings(path: Path, objective: str) -> list[str]:
    fields: dict[str, Any] = {
        "name": "foreign",
        "objective": objective,
        "model": {"family": FAMILIES.get(objective, "bert"), "pretrained": "some/model"},
        "data": {"sequence_length": 32, "train": [{"path": str(path), "holdout": 0.1}]},
        "train": {"steps": 2, "global_batch": 2},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }
    return [message for where, message in check(parse_recipe(fields)) if where[0] == "data"]


def shown(role: str, value: Any) -> Any:
    if role == "image":
        return int(np.asarray(decoded(value, "L")).mean())
    return len(read_audio(value)) if role == "audio" else value


def read(path: Path, objective: str) -> list[Any]:
    opened = open_for(objective_spec(objective), Source(path=str(path)), training=True)
    reader = ShareReader(share_of(opened, 0, 1), Retry(), "stop")
    reader.seek(START)
    try:
        rows = reader.read(100)
    finally:
        reader.close()
    return [{role: shown(role, value) for role, value in row.items()} if isinstance(row, dict) else row for row in rows]


@pytest.mark.parametrize("name", CASES)
def test_what_others_publish_is_read(tmp_path: Path, name: str) -> None:
    write, objective, rows = CASES[name]
    path = write(tmp_path)
    assert findings(path, objective) == []
    assert read(path, objective) == rows


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n"
POINTER = "is a pointer of Git LFS and not the file itself; run `git lfs pull`"
PACKED = gzip.compress(lines(*({"text": f"{n * n}"} for n in range(2000))).encode())
REFUSED: dict[str, tuple[Write, str, str, str]] = {
    "an empty file": (files(**{"a.jsonl": ""}), "causal_lm", "a.jsonl is empty", "a.jsonl has no rows: it is empty"),
    "a header alone": (files(**{"a.csv": "text\n"}), "causal_lm", "a.csv has a header and no rows", ""),
    "a pointer for Parquet": (files(**{"a.parquet": LFS}), "causal_lm", POINTER, POINTER),
    "a pointer for JSON": (files(**{"a.jsonl": LFS}), "causal_lm", POINTER, POINTER),
    "no Parquet": (
        files(**{"a.parquet": "x" * 100}),
        "causal_lm",
        "a.parquet cannot be read as Parquet: ",
        "a.parquet cannot be read as Parquet: ",
    ),
    "half of a gzip": (
        files(**{"a.jsonl.gz": PACKED[: len(PACKED) // 2]}),
        "causal_lm",
        "cannot be decompressed: Compressed file ended",
        "a.jsonl.gz cannot be read: Compressed file ended",
    ),
    "no gzip": (files(**{"a.csv.gz": "xxxx"}), "causal_lm", "cannot be decompressed: Not a gzip", "cannot be read"),
    "a page instead of data": (
        files(**{"a.jsonl": "<!DOCTYPE html>\n<html></html>\n"}),
        "causal_lm",
        "line 1 is no JSON: Expecting value at character 1",
        "line 1 holds no JSON",
    ),
    "no header": (
        files(**{"a.tsv": "7\ta.wav\tHello.\n"}),
        "speech_to_text",
        "the data has no column 'audio'; it has 7, a.wav, Hello.",
        "a.tsv has no column 'audio'; it has 7, a.wav, Hello.. Set columns.audio to one",
    ),
    "classes at the same name below each": (
        below(files(**{"a/deep/1.png": picture(1), "b/deep/2.png": picture(2)})),
        "image_classification",
        "the data has no column 'label'; it has image",
        "has no column 'label'; it has image",
    ),
    "an archive": (files(**{"a.zip": "PK"}), "image_classification", "files end in .parquet", "files end in .parquet"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_seen_by_validate(tmp_path: Path, name: str) -> None:
    write, objective, seen, told = REFUSED[name]
    path = write(tmp_path)
    assert any(seen in message for message in findings(path, objective))
    if told:
        with pytest.raises(DataError) as caught:
            read(path, objective)
        assert told in str(caught.value)
        assert "\n" not in str(caught.value)
