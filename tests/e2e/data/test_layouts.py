"""A launch with data as people have it: brackets in a path, a broken line, and a CSV with words like None."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.cli import Command, write_recipe

pytestmark = pytest.mark.slow


def test_a_launch_trains_on_what_can_be_read_and_names_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "data [v2]"
    folder.mkdir()
    lines = [json.dumps({"text": f"line {n}", "meta": n if n < 50 else {"n": n}}) for n in range(100)]
    (folder / "train.jsonl").write_text("\n".join([*lines[:3], '{"text": broken}', *lines[3:]]))
    words = ["None", "NA", "null", "nan", "N/A", "yes", "no", "maybe"] * 8
    (folder / "words.csv").write_text("text,label\n" + "".join(f"{word} {n},{n % 2}\n" for n, word in enumerate(words)))
    sources = [{"path": str(folder / name), "holdout": 0.1} for name in ("*.jsonl", "words.csv")]
    recipe = write_recipe(
        tmp_path,
        folder,
        data={"train": sources},
        train={"steps": 20, "global_batch": 8, "seed": 7},
        checkpoint={"every": 20},
        evaluate={"every": 20, "rows": 4},
    )
    with Command("launch", recipe, "--local", runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    (counted,) = command.events("data")
    assert counted["unusable"] >= 1
    assert any(name.startswith("train.jsonl, row 4: line 4: no JSON: Expecting value") for name in counted["named"])
    assert "unusable rows left out" in output
