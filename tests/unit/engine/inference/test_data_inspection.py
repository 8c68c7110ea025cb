"""`shardyard data inspect`: what was recognised, which tokens of the first rows are trained, lengths and shares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.commands.inspect_data import inspect_data as command
from shardyard.engine.inference.data_inspection import inspect_data
from shardyard.recipe.loading.load import dump_recipe
from shardyard.recipe.schema import Recipe
from support.tiny import tiny_recipe, write_corpus

CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def texts(folder: Path) -> Recipe:
    (folder / "a.csv").write_text("n,body\n" + "".join(f"{n},text {n}\n" for n in range(200)))
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": "b" * n}) + "\n" for n in range(100)))
    sources = [
        {"path": str(folder / "a.csv"), "text_column": "body", "holdout": 0.1},
        {"path": str(folder / "b.jsonl"), "weight": 3.0, "holdout": 0.1},
    ]
    return tiny_recipe(folder, data={"train": sources})


def conversations(folder: Path) -> Recipe:
    turns = [{"from": "human", "value": "ask"}, {"from": "gpt", "value": "answer"}]
    rows = [*[{"conversations": turns, "id": n} for n in range(40)], {"conversations": [], "id": 41}]
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"path": str(path), "holdout": 0.1}
    return tiny_recipe(folder, objective="instruction", data={"train": [source]}, chat={"template": CHAT})


def test_texts_with_documents_and_shares(tmp_path: Path) -> None:
    found = inspect_data(texts(tmp_path), 64, 2)
    first, second = found.sources
    assert (first.recognised, first.columns, first.others) == ("csv", {"text": "body"}, ("n",))
    assert (second.recognised, second.columns, second.others) == ("json", {"text": "text"}, ())
    assert (first.share, second.share) == (0.25, 0.75)
    assert first.rows + second.rows == 64
    assert first.tokens + second.tokens == 64 * 32
    assert found.filled == found.trained == 1.0
    assert sum(found.lengths.values()) == first.documents + second.documents
    assert found.speed.tokens_per_second == pytest.approx(32 * found.speed.rows_per_second)
    assert found.speed.first_seconds > 0.0
    assert len(found.rows) == 2
    row = next(row for row in found.rows if row.source == first.name or row.source == second.name)
    assert row.tokens == 32
    assert {span.document for span in row.spans} == set(range(max(span.document for span in row.spans) + 1))


def test_what_the_run_takes_of_a_source_and_how_often_it_is_seen(tmp_path: Path) -> None:
    (tmp_path / "even.jsonl").write_text("".join(json.dumps({"text": f"{n:031d}"}) + "\n" for n in range(100)))
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": f"{n:031d}"}) + "\n" for n in range(20)))
    sources = [
        {"path": str(tmp_path / "even.jsonl"), "holdout": 0.1},
        {"path": str(tmp_path / "few.jsonl"), "epochs": 2},
    ]
    recipe = tiny_recipe(tmp_path, data={"train": sources}, train={"steps": 20, "global_batch": 8})
    even, few = inspect_data(recipe, 4, 0).sources
    # A document of 31 bytes and its separator fills a row.
    assert (even.pass_documents, few.pass_documents) == (100, 20)
    assert even.pass_tokens == pytest.approx(90 * 32, rel=0.12)
    assert few.pass_tokens == pytest.approx(20 * 32)
    assert few.run_epochs == pytest.approx(2.0)
    assert even.run_tokens == pytest.approx(160 * 32 - 2 * 20 * 32)


def test_conversations_with_their_masks(tmp_path: Path) -> None:
    found = inspect_data(conversations(tmp_path), 8, 1)
    (source,), (row,) = found.sources, found.rows
    assert (source.recognised, source.columns, source.others) == (
        "json, ShareGPT", {"conversations": "conversations"}, ("id",)
    )  # fmt: skip
    read, trained = row.spans
    assert (read.trained, trained.trained) == (False, True)
    assert read.text.endswith("assistant: ")
    assert trained.text == "answer<|endoftext|>"
    assert found.filled is not None
    assert found.filled < 1.0


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], as_json: bool) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(dump_recipe(conversations(tmp_path)))
    command(str(path), None, rows=1, sample=8, as_json=as_json)
    printed = capsys.readouterr().out
    if as_json:
        found: dict[str, Any] = json.loads(printed)
        assert found["rows"][0]["spans"][1] == {"text": "answer<|endoftext|>", "document": 0, "trained": True}
        return
    assert f"{tmp_path / 'rows.jsonl'}: json, ShareGPT (conversations; not read: id)" in printed
    assert "100.0% of the mixture; 8 rows, 8 documents" in printed
    assert "assistant: ⟦answer<|endoftext|>⟧" in printed
    assert "≤ 32 tokens" in printed or "≤ 64 tokens" in printed


@pytest.mark.slow
def test_what_cutting_costs_is_told(tmp_path: Path) -> None:
    """Rows that are cut from concatenated documents begin within one; whole documents are not cut."""
    corpus = write_corpus(tmp_path, 100)
    joined, whole = (
        inspect_data(tiny_recipe(corpus, data={"sequence_length": 400, "packing": packing}), 12, 0)
        for packing in ("concat", "best_fit")
    )
    assert joined.cut_documents == 8  # the first rows of four streams begin with a document
    assert joined.cut_tokens > joined.cut_documents
    assert (whole.cut_documents, whole.cut_tokens) == (0, 0)
    assert joined.filled == 1
    assert whole.filled is not None
    assert 0.8 < whole.filled < 1
