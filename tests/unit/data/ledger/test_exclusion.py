"""`data.exclude`: listed documents are neither trained nor evaluated on, and everything else is."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from shardyard.data.formats import FormatInputs
from shardyard.data.ledger.exclusion import read_exclusion
from shardyard.data.stream.held_out import held_out_rows
from shardyard.errors import DataError
from shardyard.recipe.schema import Data, Source
from support.data_cases import bytes_tokenizer, documents, loader, write_jsonl


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def seen(data: Data, steps: int) -> tuple[Counter[str], list[dict[str, object]], dict[str, int]]:
    """The whole documents of some steps, the fingerprints of the sources, and what was removed."""
    text = ""
    with loader(data, global_batch=4, streams=1) as opened:
        for _ in range(steps):
            rows = next(opened)["input_ids"].tolist()
            text += "".join(chr(token) if token < 256 else "\n" for row in rows for token in row)
        removed = opened.stats()["sources"][0]["left_out"]["filtered"]
        prints = [dict(one) for one in opened.fingerprint()["sources"]]
    return Counter(text.split("\n")[1:-1]), prints, removed


@pytest.mark.parametrize("order", [1, 2])
def test_listed_documents_are_kept_out(tmp_path: Path, order: int) -> None:
    texts = documents(40)
    path = write_jsonl(tmp_path, [texts])
    listed = tmp_path / "exclude"
    listed.write_text(f"# removed\n\n{digest(texts[3])}\nsha256:{digest(texts[17]).upper()}\n")
    with listed.open("a") as file:
        file.write(json.dumps({"sha256": digest(texts[30]), "file": "x", "row": 31}) + "\n")
    options = {"train": [Source(path=path, holdout=0.0)], "sequence_length": 16, "shuffle_window": 5, "order": order}
    every, (plain,), nothing = seen(Data(**options), 30)
    found, (marked,), removed = seen(Data(exclude=str(listed), **options), 30)
    assert set(every) >= set(texts)
    assert set(found) >= set(texts) - {texts[3], texts[17], texts[30]}
    assert not {texts[3], texts[17], texts[30]} & set(found)
    assert nothing == {}
    assert removed["exclude: listed"] >= 3
    assert marked.pop("excluded") != ""
    assert marked == plain


def test_evaluations_leave_them_out_and_a_source_may_have_its_own_list(tmp_path: Path) -> None:
    texts = documents(10)
    path = write_jsonl(tmp_path, [texts])
    (tmp_path / "none").write_text("# nothing\n")
    (tmp_path / "some").write_text("".join(f"{digest(text)}\n" for text in texts[:9]))

    def rows(**exclude: str) -> int:
        source = Source(path=path, **{name: value for name, value in exclude.items() if name != "data"})  # type: ignore[arg-type]
        data = Data(sequence_length=64, train=[source], validation=[source], exclude=exclude.get("data"))
        return sum(int((row["labels"] >= 0).sum()) for row in held_out_rows(
            FormatInputs(data, bytes_tokenizer()), 100, 1
        ).rows)  # fmt: skip

    assert rows() > rows(data=str(tmp_path / "some"))
    assert rows(data=str(tmp_path / "some"), exclude=str(tmp_path / "none")) == rows()


@pytest.mark.parametrize("line", ["corpus.jsonl:3", "abc", '{"text": "x"}', "{"])
def test_a_line_that_names_no_hash(tmp_path: Path, line: str) -> None:
    listed = tmp_path / "exclude"
    listed.write_text(f"{digest('x')}\n{line}\n")
    with pytest.raises(DataError, match=r"line 2 of .* names no SHA-256"):
        read_exclusion(str(listed))
    with pytest.raises(DataError, match="cannot be read"):
        read_exclusion(str(tmp_path / "nowhere"))
