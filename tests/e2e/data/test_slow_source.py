"""A launch whose source is slow, profiled: through Ray, the profile names the source first."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest

from shardyard.tracking.run import profile
from shardyard.tracking.run.folder import RunFolder
from support.cli import Command, write_recipe

pytestmark = pytest.mark.slow

# Python's regular expressions try each way to divide these letters: about a second a document.
SLOW = {"regex": {"pattern": "^(?:a|aa)+c", "action": "drop"}}
DOCUMENT = "a" * 34 + " model trains"

# Whether steps wait for rows, or share the cores with the threads that make them, depends on the machine.
FIRST = re.compile(r"1\. (Steps wait for their batch|Rows are made by threads)")


def test_a_slow_source_is_named_first(tmp_path: Path) -> None:
    corpus = tmp_path / "slow.jsonl"
    corpus.write_text("".join(json.dumps({"text": f"{DOCUMENT} {number}"}) + "\n" for number in range(400)))
    source = {"sequence_length": 32, "streams": 2, "shuffle_window": 1, "prefetch": 1, "filters": [SLOW]}
    recipe = write_recipe(
        tmp_path,
        corpus,
        data={**source, "train": [{"path": str(corpus), "holdout": 0.5}]},
        train={"steps": 6, "global_batch": 4},
        schedule={"warmup": 1},
        evaluate={"every": 6, "rows": 2},
        checkpoint={"every": 6},
        sample={"prompts": []},
    )
    with Command("launch", recipe, "--profile", runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    assert "profile of steps 4 to 6" in output
    assert FIRST.search(output), output
    folder = RunFolder(command.folder)
    found = profile.read(folder)
    assert found is not None
    assert [one.rank for one in found.ranks] == [0, 1]
    assert profile.requested(folder) == 0
    for rank in (0, 1):
        with gzip.open(profile.folder_of(folder) / f"rank-{rank}.trace.json.gz", "rt") as file:
            names = {event.get("name", "") for event in json.load(file)["traceEvents"]}
        assert {"shardyard.step", "shardyard.forward", "shardyard.data"} <= names
    with Command("runs", command.folder, runs=tmp_path / "runs") as shown:
        _, text = shown.finish()
    assert FIRST.search(text), text
