"""A launch on Ray that fails before its first step: it is told and listed, and `latest` is the run before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardyard.tracking.run.folder import RunFolder, list_runs
from support.cli import Command, write_recipe

pytestmark = pytest.mark.slow


def test_latest_passes_over_a_start_that_failed(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    trained = RunFolder.create(runs, "trained", "name: trained\n", "name: trained\nobjective: causal_lm\n")
    trained.metrics.write_text('{"step": 1, "train/loss": 1.5}\n')
    trained.update(state="finished")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    recipe = write_recipe(tmp_path, empty, cluster={"workers": 1, "max_failures": 0})
    with Command("launch", recipe, runs=runs) as command:
        code, output = command.finish()
    assert code != 0
    assert "Error: " in output
    assert "Traceback" not in output
    assert RunFolder.open(runs, "latest") == trained
    failed = [run for run in list_runs(runs) if run != trained]
    assert [run.state for run in failed] == ["failed"]
    # The error names the run, so that its logs are found.
    assert str(failed[0].path) in output
