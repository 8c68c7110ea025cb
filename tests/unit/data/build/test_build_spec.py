"""The file of `shardyard data build`: what is refused, with the line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.data.build.spec import load_spec
from shardyard.errors import RecipeError

GOOD = """\
name: clean
sources:
  - {source: python-docs, license: PSF-2.0}
steps:
  - gopher_quality:
  - near_duplicates: {bands: 20}
output: {folder: out}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "build.yaml"
    path.write_text(text)
    return path


def test_a_good_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_spec(written(tmp_path, GOOD))
    assert [step.name for step in loaded.spec.steps] == ["gopher_quality", "near_duplicates"]
    assert loaded.folder == tmp_path / "out"
    assert load_spec(loaded.path, tmp_path / "other").folder == tmp_path / "other"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "gopher_quality",
            "gopher_qualty",
            "build.yaml:5: steps.0.gopher_qualty: unknown key 'gopher_qualty'; did you mean",
        ),
        (
            "bands: 20",
            "band: 20",
            "build.yaml:6: steps.1.near_duplicates.band: unknown key 'band'; did you mean 'bands'?",
        ),
        ("bands: 20", "bands: 0", "build.yaml:6: steps.1.near_duplicates.bands: must be at least 1, got 0"),
        ("bands: 20", "bands: 200, rows: 40", "times rows is 8000; give at most 4096 hashes"),
        ("license", "licence", "build.yaml:3: sources.0.licence: unknown key 'licence'; did you mean 'license'?"),
        ("source: python-docs", "source: python-dogs", "no embedded corpus or dataset 'python-dogs'"),
        ("source: python-docs", "path: none/*.jsonl", "no file or folder matches 'none/*.jsonl'"),
        ("license: PSF-2.0", "keep_columns: [source]", "'source' is the name of a column of the output"),
        ("folder: out", "folder: out, format: csv", "must be one of parquet, jsonl or jsonl.zst, got 'csv'"),
        ("folder: out", "folder: out, shard_bytes: 5", "got 5"),
        ("name: clean\n", "", "build.yaml:1: name: is missing"),
        ("sources:", "model: {family: gpt2}\nsource:", "is a recipe"),
        (GOOD, "", "is empty"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, old: str, new: str, problem: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_spec(written(tmp_path, GOOD.replace(old, new, 1)))
    assert problem in str(caught.value)
