"""Layouts of conversations and pairs: told in the plan, and refused by `validate` where the columns are unknown."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardyard.recipe.layouts import recognised
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.data import data_rules
from shardyard.recipe.schema import Recipe
from shardyard.recipe.seen_columns import seen_columns


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
    assert seen_columns(str(tmp_path)) == ["a", "b"]
    assert seen_columns(str(tmp_path / "*.csv")) == ["a", "b"]
    for unreadable in ("none.jsonl", "https://host/x.jsonl", "org/set"):
        assert seen_columns(unreadable) == []
    (tmp_path / "broken.jsonl").write_text("{no json\n")
    (tmp_path / "broken.parquet").write_text("no table")
    assert seen_columns(str(tmp_path / "broken.jsonl")) == seen_columns(str(tmp_path / "broken.parquet")) == []
