"""Layouts of conversations and pairs: told in the plan, and refused by `validate` where the columns are unknown."""

from __future__ import annotations

import csv
import gzip
import json
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardyard.recipe.layouts import recognised
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.data import data_rules
from shardyard.recipe.schema import Recipe
from shardyard.recipe.seen_columns import look, seen_columns


def recipe(path: Path, objective: str = "instruction", **source: Any) -> Recipe:
    return parse_recipe(
        {
            "name": "talk",
            "objective": objective,
            "model": {"family": "gpt2", "pretrained": "some/model"},
            "data": {"sequence_length": 32, "train": [{"path": str(path), "holdout": 0.1, **source}]},
            "train": {"steps": 2, "global_batch": 2},
            "optimizer": {"name": "adamw", "lr": 1e-3},
        }
    )


def write(folder: Path, row: dict[str, Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text(json.dumps(row) + "\n")
    return path


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": []}, "messages (messages)"),
        ({"conversations": [], "tools": ""}, "ShareGPT (conversations, tools)"),
        ({"instruction": "", "input": "", "output": "", "id": 1}, "Alpaca (instruction, output, input)"),
        ({"question": "", "answer": ""}, "prompt–completion (prompt: question, completion: answer)"),
    ],
)
def test_the_plan_tells_the_layout(tmp_path: Path, row: dict[str, Any], told: str) -> None:
    assert recognised(recipe(write(tmp_path, row))) == f"rows.jsonl: {told}"


def test_pairs_and_mapped_columns(tmp_path: Path) -> None:
    path = write(tmp_path, {"chosen": "", "rejected": ""})
    assert recognised(recipe(path, "preference")) == "rows.jsonl: two conversations (chosen, rejected)"
    path = write(tmp_path, {"q": "", "a": ""})
    mapped = recipe(path, columns={"prompt": "q", "completion": "a"})
    assert recognised(mapped) == "rows.jsonl: prompt–completion (prompt: q, completion: a)"


@pytest.mark.parametrize("columns", [{}, {"instruction": "q", "output": "z"}])
def test_unknown_columns_are_a_problem_of_the_recipe(tmp_path: Path, columns: dict[str, str]) -> None:
    path = write(tmp_path, {"q": "", "a": ""})
    ((where, message),) = data_rules(recipe(path, columns=columns))
    assert where == ("data", "train", 0, "columns")
    assert message.startswith("has the columns q, a, of which instruction recognises no layout")
    assert message.endswith("Map your columns to such roles with `columns`, for example {prompt: q, completion: a}")


def test_columns_of_files_of_each_kind(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "t.parquet")
    (tmp_path / "list.json").write_text(json.dumps([{"a": 1}, {"b": 2}], indent=1))
    with gzip.open(tmp_path / "z.jsonl.gz", "wt") as file:
        file.write('{"a": 1}\n{"b": [2]}\n')
    with (tmp_path / "c.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["a", "b"], ["1", "x"]])
    for name in ("t.parquet", "list.json", "z.jsonl.gz", "c.csv"):
        assert seen_columns(str(tmp_path / name)) == ["a", "b"], name
    assert seen_columns(str(tmp_path / "*.csv")) == ["a", "b"]
    assert "mixes files of several kinds" in str(look(str(tmp_path), "train").problem)
    for unreadable in ("none.jsonl", "https://host/x.jsonl", "org/set"):
        assert seen_columns(unreadable) == []
    (tmp_path / "broken.jsonl").write_text("{no json\n")
    (tmp_path / "broken.parquet").write_text("no table")
    assert seen_columns(str(tmp_path / "broken.jsonl")) == seen_columns(str(tmp_path / "broken.parquet")) == []


def told(path: Path, objective: str, **source: Any) -> list[str]:
    return [
        f"{'.'.join(map(str, where[3:]))}: {message}"
        for where, message in data_rules(recipe(path, objective, **source))
    ]


def test_columns_that_an_objective_needs_are_looked_for(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("a\tlabel\nx\t1\n")
    (finding,) = told(path, "text_classification")
    assert finding == (
        "text_column: text_classification reads text (text), and the data has no column 'text'; it has a, label. Name "
        "the right one with text_column"
    )
    assert told(path, "text_classification", text_column="a") == []
    (finding,) = told(path, "text_classification", columns={"text": "a", "label": "kind"})
    assert finding.startswith("columns: text_classification reads label (label), and the data has no column 'kind'")
    with gzip.open(tmp_path / "rows.csv.gz", "wt") as file:
        file.write("img;caption\nx;y\n")
    assert told(tmp_path / "rows.csv.gz", "contrastive") == []


def test_what_a_folder_holds_is_looked_at(tmp_path: Path) -> None:
    for name in ("train/cat/a.png", "train/dog/b.png", "sound/x.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    folder = tmp_path / "train"
    assert told(folder, "image_classification") == []
    (finding,) = told(folder, "causal_lm")
    assert "has no column 'text'; it has image, label" in finding
    (finding,) = told(tmp_path / "train", "image_classification", split="test")
    assert finding.startswith("split: ")
    assert "has no split 'test'; it has train" in finding
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "train" / "cat" / "a.png", "0.png")
    (finding,) = told(tmp_path / "set.tar", "image_classification")
    assert "no column 'label'; it has png" in finding


def test_a_file_that_begins_with_no_json_is_a_problem_of_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": \n')
    (finding,) = told(path, "causal_lm")
    assert finding == f"path: {path}: line 1 is no JSON: Expecting value at character 1"


@pytest.mark.parametrize(
    ("documents", "finding"),
    [
        ("lines", None),
        (400, None),
        ("/^# /", None),
        (0, "documents: is 0; give a number of characters from 1 on"),
        ("/(/", "documents: is no regular expression: missing ), unterminated subpattern at position 0"),
        ("words", "documents: is 'words'; give file, lines, paragraphs, a number of characters, or a pattern as /…/"),
    ],
)
def test_ways_to_divide_a_text(tmp_path: Path, documents: Any, finding: str | None) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert told(tmp_path / "a.txt", "causal_lm", documents=documents) == ([] if finding is None else [finding])
