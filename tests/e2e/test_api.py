"""The page of the public API is a script that runs: load, override, plan, launch, read, resume, sample."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import shardyard
from support.waiting import PATIENCE_SECONDS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "api.md"
CHECKS = """
assert planned.steps == 8
assert through_ray.state == "finished"
assert "attempt" in seen and "finished" in seen, seen
assert table["step"] == [1, 2, 3, 4], "what was trained before the run went on"
assert (run.state, run.step) == ("finished", 8)
assert [line["step"] for line in run.metrics()] == list(range(1, 9))
assert run.columns("train/loss")["train/loss"] == through_ray.columns("train/loss")["train/loss"], "the same training"
assert [checkpoint.step for checkpoint in run.checkpoints()] == [4, 8]
assert Run().id == through_ray.id, "the one created last"

class Failing(Exception): ...

def fail(line):
    raise Failing

try:
    run = launch(recipe, {"name": "failing"}, local=True, on_event=fail)
except Failing:
    run = Run("failing")
assert run.state in ("interrupted", "finished"), run.state

stop.request()
assert launch(recipe, {"name": "stopped"}, local=True, stop=stop).state == "interrupted"
assert Run("stopped").metrics() == []

try:
    launch(recipe, {"name": "exploding", "optimizer.lr": 1e30, "schedule.warmup": 0}, local=True)
except ShardyardError as error:
    print("refused:", error)
run = Run("exploding")
assert run.state == "failed"
assert [event.kind for event in run.events()][-1] == "failure"
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_the_blocks_of_the_page_run_in_their_order(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    assert len(blocks) > 8
    script = tmp_path / "notebook.py"
    script.write_text("\n".join([*blocks, CHECKS]), encoding="utf-8")
    variables = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    done = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env={**variables, "SHARDYARD_RUNS": str(tmp_path / "runs")},
        capture_output=True,
        text=True,
        timeout=6 * PATIENCE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "did you mean" in done.stdout, "the problem of a mistyped field is for people"


def test_the_page_names_what_there_is() -> None:
    (line,) = re.findall(r"^from shardyard import (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert set(line.split(", ")) <= set(shardyard.__all__)
