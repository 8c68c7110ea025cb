"""First values of local files: `validate` refuses those that end a run, and tells of those that are left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardyard.cli.main import run
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.rules.values import value_notes, value_rules
from shardyard.recipe.schema import Recipe


def recipe(path: Path, objective: str, model: dict[str, Any], on_error: str = "skip") -> Recipe:
    return parse_recipe(fields(path, objective, model, on_error))


def fields(path: Path, objective: str, model: dict[str, Any], on_error: str = "skip") -> dict[str, Any]:
    return {
        "name": "classes",
        "objective": objective,
        "model": {"family": "bert", **model},
        "data": {"sequence_length": 32, "train": [{"path": str(path), "holdout": 0.1}], "on_error": on_error},
        "train": {"steps": 2, "global_batch": 2},
        "optimizer": {"name": "adamw", "lr": 1e-3},
    }


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


def of_labels(folder: Path, labels: list[Any], kind: str) -> Path:
    rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)]
    if kind == "csv":
        return write(folder / "a.csv", "text,label\n" + "".join(f"{row['text']},{row['label']}\n" for row in rows))
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
        return folder / "a.parquet"
    return write(folder / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


FIVE = {"config": {"num_labels": 5}}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_labels_for_which_the_model_has_no_class(tmp_path: Path, kind: str) -> None:
    path = of_labels(tmp_path, [0, 4, 5, -1], kind)
    told = (
        f"column 'label' of a.{kind} has labels in 1 of its first 4 rows that the model has no class for: 5; it has 5 "
        "classes, 0 to 4, so a run leaves them out. Name all classes in model.labels, or set num_labels in model.config"
    )
    left = recipe(path, "text_classification", FIVE)
    assert list(value_rules(left)) == []
    assert value_notes(left) == [told]
    stopped = recipe(path, "text_classification", FIVE, on_error="stop")
    assert list(value_rules(stopped)) == [(("data", "train", 0), told.replace("leaves them out", "ends there"))]
    assert value_notes(stopped) == []
    assert value_notes(recipe(path, "text_classification", {"config": {"num_labels": 6}})) == []


def test_classes_by_name(tmp_path: Path) -> None:
    path = of_labels(tmp_path, ["dog", "cat"], "csv")
    assert value_notes(recipe(path, "text_classification", {"labels": ["cat", "dog"]})) == []
    ((_, message),) = value_rules(recipe(path, "text_classification", FIVE))
    assert message.startswith("column 'label' of a.csv has labels in 2 of its first 2 rows")
    assert "no class for: dog, cat; it has 5 classes, 0 to 4, so none is left. Name all" in message
    (note,) = value_notes(recipe(path, "text_classification", {"labels": ["cat", "bird"]}))
    assert "no class for: dog; its classes are cat, bird, so a run leaves them out" in note
    assert value_notes(recipe(path, "text_classification", {"pretrained": "some/model"})) == []


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    vit = {"family": "vit", "config": {"num_labels": 2}}
    urls = write(tmp_path / "a.csv", "image,label\nhttps://host/a.png,1\n")
    ((_, message),) = value_rules(recipe(urls, "image_classification", vit))
    assert message == "column 'image' holds URLs such as https://host/a.png; download the files, or store their bytes"
    (tmp_path / "b.png").touch()
    some = write(tmp_path / "b.csv", "image,label\nb.png,1\ngone.png,0\n")
    (note,) = value_notes(recipe(some, "image_classification", vit))
    assert note.endswith("names files relative to its folder, and 1 of its first 2 names no file, such as gone.png")
    none = write(tmp_path / "c.csv", "image,label\ngone.png,0\n")
    ((_, message),) = value_rules(recipe(none, "image_classification", vit))
    assert "1 of its first 1 names no file, such as gone.png" in message


def test_validate_tells_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = of_labels(tmp_path, [0, 1, 5], "csv")
    yaml = tmp_path / "r.yaml"

    def validated(on_error: str) -> tuple[int, str]:
        yaml.write_text(json.dumps(fields(path, "text_classification", FIVE, on_error)))
        code = run(["validate", str(yaml)])
        told = capsys.readouterr()
        return code, " ".join((told.out + told.err).split())

    code, told = validated("skip")
    assert code == 0
    assert "note: column 'label' of a.csv has labels in 1 of its first 3 rows" in told
    code, told = validated("stop")
    assert code == 2
    assert "so a run ends there" in told
