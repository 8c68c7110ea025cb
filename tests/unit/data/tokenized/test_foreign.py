"""Token ids in the files of other libraries, written here byte by byte as these libraries document them."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardyard.errors import DataError
from shardyard.recipe.rules.rules import check
from shardyard.recipe.schema import Source
from support.data_cases import batches, data, documents, global_rows, loader, rows, two_separators, write_jsonl
from support.tokenizers.tokenized import recipe_of

EOS = 256
Write = Callable[[Path, Sequence[bytes]], str]


def ids(texts: Sequence[bytes]) -> list[int]:
    return [token for text in texts for token in (*text, EOS)]


def olmo(folder: Path, texts: Sequence[bytes]) -> str:
    np.array(ids(texts), "<u2").tofile(folder / "part-0.npy")
    return "part-0.npy"


def numpy_file(folder: Path, texts: Sequence[bytes]) -> str:
    np.save(folder / "part-0.npy", np.array(ids(texts), np.uint32))
    return "part-0.npy"


def nanogpt(folder: Path, texts: Sequence[bytes]) -> str:
    np.array(ids(texts), "<u2").tofile(folder / "train.bin")
    return "train.bin"


def llm_c(folder: Path, texts: Sequence[bytes]) -> str:
    # Here the separator comes first.
    found = [token for text in texts for token in (EOS, *text)]
    header = struct.pack("<3i", 20240520, 1, len(found)).ljust(1024, b"\0")
    (folder / "train_000000.bin").write_bytes(header + np.array(found, "<u2").tobytes())
    return "train_000000.bin"


def llm_c_wide(folder: Path, texts: Sequence[bytes]) -> str:
    header = struct.pack("<3i", 20240801, 7, len(ids(texts))).ljust(1024, b"\0")
    (folder / "train_000000.bin").write_bytes(header + np.array(ids(texts), "<u4").tobytes())
    return "train_000000.bin"


def megatron(folder: Path, texts: Sequence[bytes]) -> str:
    # A document of Megatron may have several sequences; here each third one has two.
    sequences: list[list[int]] = []
    ends = [0]
    for number, text in enumerate(texts):
        whole = [*text, EOS]
        sequences += [whole[:2], whole[2:]] if number % 3 == 0 and len(whole) > 3 else [whole]
        ends.append(len(sequences))
    lengths = [len(sequence) for sequence in sequences]
    pointers = [4 * sum(lengths[:number]) for number in range(len(lengths))]
    (folder / "text_document.bin").write_bytes(np.array(ids(texts), "<i4").tobytes())
    (folder / "text_document.idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, 4, len(sequences), len(ends))
        + np.array(lengths, "<i4").tobytes()
        + np.array(pointers, "<i8").tobytes()
        + np.array(ends, "<i8").tobytes()
    )
    return "text_document.bin"


def datatrove(folder: Path, texts: Sequence[bytes]) -> str:
    ends = np.cumsum([len(text) + 1 for text in texts])
    (folder / "00000_tokenized.ds").write_bytes(np.array(ids(texts), "<u2").tobytes())
    (folder / "00000_tokenized.ds.index").write_bytes(ends.astype("<u8").tobytes())
    return "00000_tokenized.ds"


FORMATS: list[Write] = [olmo, numpy_file, nanogpt, llm_c, llm_c_wide, megatron, datatrove]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize("whole_folder", [False, True])
def test_rows_are_those_of_the_text(tmp_path: Path, write: Write, whole_folder: bool) -> None:
    texts = documents(40)
    text = write_jsonl(tmp_path / "text", [texts])
    folder = tmp_path / "tokens"
    folder.mkdir()
    name = write(folder, [one.encode() for one in texts])
    path = str(folder if whole_folder else folder / name)
    expected = global_rows(data([Source(path=text)]), 6, 1)
    assert global_rows(data([Source(path=path)]), 6, 2) == expected
    assert check(recipe_of(data([Source(path=path, holdout=0.1)]))) == []


def test_two_separators_stand_around_documents(tmp_path: Path) -> None:
    tokenizer, texts = two_separators(), documents(30)
    np.array([t for text in texts for t in (256, *text.encode(), 257)], "<u2").tofile(tmp_path / "a.npy")
    text = write_jsonl(tmp_path / "text", [texts])
    expected = global_rows(data([Source(path=text)]), 4, 1, tokenizer=tokenizer)
    assert global_rows(data([Source(path=str(tmp_path / "a.npy"))]), 4, 1, tokenizer=tokenizer) == expected


def test_held_out_documents_are_kept_apart_whatever_the_format(tmp_path: Path) -> None:
    texts = [one.encode() for one in documents(60)]
    found = []
    for write in (olmo, megatron):
        folder = tmp_path / write.__name__
        folder.mkdir()
        source = Source(path=str(folder / write(folder, texts)), holdout=0.3)
        found.append([rows(batch) for batch in batches(data([source]), 8)])
    assert found[0] == found[1]
    whole = [rows(batch) for batch in batches(data([source.model_copy(update={"holdout": 0.0})]), 8)]
    assert found[0] != whole


def test_a_file_without_separators_is_divided_and_that_is_said(tmp_path: Path) -> None:
    np.array(np.arange(6000) % 250, "<u2").tofile(tmp_path / "train.bin")
    with loader(data([Source(path=str(tmp_path / "train.bin"))])) as opened:
        assert "divided into 12 pieces" in opened.notes[0]
        assert next(opened)["input_ids"].shape == (4, 16)


def test_splits_of_a_folder_are_told_by_the_names(tmp_path: Path) -> None:
    for name, text in (("train", b"aaaa"), ("val", b"bbbb")):
        np.array(ids([text] * 20), "<u2").tofile(tmp_path / f"{name}.bin")
    (batch,) = batches(data([Source(path=str(tmp_path))]), 1)
    assert ord("b") not in batch["input_ids"]


WRONG: list[tuple[str, Callable[[Path], Any], str]] = [
    ("a.npy", lambda path: np.array([300, 5], "<u2").tofile(path), "token id 300"),
    ("a.npy", lambda path: path.write_bytes(b"abc"), "no whole number"),
    ("a.npy", lambda path: np.save(path, np.zeros((2, 2), np.uint16)), "shape (2, 2)"),
    ("a.npy", lambda path: np.save(path, np.zeros(2)), "type <f8"),
    ("a.bin", lambda path: path.write_bytes(b"PK\x03\x04 weights of a model"), "is an archive"),
    ("a.bin", lambda path: path.write_bytes(struct.pack("<3i", 20240520, 1, 99).ljust(1024, b"\0")), "cut short"),
    ("a.ds", lambda path: path.write_bytes(b"ab"), "has no a.ds.index"),
]


@pytest.mark.parametrize(("name", "write", "message"), WRONG)
def test_files_that_cannot_be_read_say_why(tmp_path: Path, name: str, write: Any, message: str) -> None:
    write(tmp_path / name)
    recipe = data([Source(path=str(tmp_path / name), token_type="uint16" if message.startswith("no whole") else None)])
    with pytest.raises(DataError, match=message.replace("(", r"\(").replace(")", r"\)")), loader(recipe):
        pass


def test_a_wrong_index_of_megatron_is_refused(tmp_path: Path) -> None:
    megatron(tmp_path, [b"abcd", b"ef"])
    index = tmp_path / "text_document.idx"
    whole = index.read_bytes()
    for content, message in ((whole[:20], "begin with MMIDIDX"), (whole[:-3], "cut short")):
        index.write_bytes(content)
        with pytest.raises(DataError, match=message), loader(data([Source(path=str(tmp_path / "text_document.bin"))])):
            pass
    index.write_bytes(whole[:34] + b"\1" + whole[35:])
    with pytest.raises(DataError, match="does not fit"), loader(data([Source(path=str(tmp_path))])):
        pass


def test_an_id_deep_in_a_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    found = np.tile(np.array([1, 2, 3, EOS], "<u2"), 40_000)
    found[-2] = 999
    found.tofile(tmp_path / "a.npy")
    with pytest.raises(DataError, match=r"document 40000 holds the token id 999.*257 tokens"):
        batches(data([Source(path=str(tmp_path / "a.npy"))], shuffle_window=50_000), 2500, streams=4)


def test_validation_finds_what_headers_tell(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([300, 5], np.uint16))
    recipe = recipe_of(data([Source(path=str(tmp_path / "a.npy"), text_column="body", documents="lines")]))
    messages = [message for path, message in check(recipe) if path[:2] == ("data", "train")]
    assert [word for word in ("is for texts", "token id 300") if any(word in m for m in messages)] == [
        "is for texts",
        "token id 300",
    ]
    other = recipe.model_copy(update={"objective": "seq2seq"})
    assert any("seq2seq makes its rows from the data itself" in message for _, message in check(other))
    text = recipe_of(data([Source(path=write_jsonl(tmp_path, [["a"]]), token_type="uint16")]))
    assert any(path[-1] == "token_type" for path, _ in check(text))
