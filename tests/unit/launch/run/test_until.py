"""A pause that lies before the newest checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from shardyard.cli.main import run
from shardyard.engine.checkpoint import files
from shardyard.engine.loop import train
from shardyard.errors import EXIT_USAGE
from shardyard.recipe.loading.load import dump_recipe
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe, write_corpus


def write(checkpoints: Path, step: int, *, good: bool = True) -> Path:
    partial = files.partial_folder(checkpoints, step)
    partial.mkdir(parents=True)
    entry = files.write_json(partial / "trainer.json", {"step": step})
    return files.commit(checkpoints, step, {"trainer.json": entry}, world_size=1, good=good)


def test_a_run_goes_on_from_its_newest_good_checkpoint(tmp_path: Path) -> None:
    assert files.newest_good_step(tmp_path / "none") == 0
    for step, good in ((10, True), (20, True), (30, False)):
        write(tmp_path, step, good=good)
    assert files.newest_good_step(tmp_path) == 20
    (tmp_path / "step-00000020" / files.MANIFEST).write_text("{")
    assert files.newest_good_step(tmp_path) == 10


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--until", "20"), "--until 20: {} goes on from its checkpoint of step 30, which is later. "),
        (("--step", "10", "--until", "5"), "--until 5: {} goes on from its checkpoint of step 10, which is later. "),
    ],
)
def test_a_pause_before_it_is_refused_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], told: str
) -> None:
    recipe = dump_recipe(tiny_recipe(write_corpus(tmp_path)))
    folder = RunFolder.create(tmp_path / "runs", "tiny", recipe, recipe)
    for step in (10, 30):
        write(folder.checkpoints, step)
    assert run(["resume", "latest", "--local", *options, "--runs-dir", str(tmp_path / "runs")]) == EXIT_USAGE
    said = " ".join(capsys.readouterr().err.split())
    assert told.format(folder.path) in said
    assert "Name a later step" in said
    assert ("or go back first with --step N" in said) == ("--step" not in options)
    assert [path.name for path in sorted(folder.checkpoints.iterdir())] == ["step-00000010", "step-00000030"]


@pytest.mark.parametrize("until", [20, 25])
def test_a_rank_that_starts_at_its_pause_trains_no_step(until: int) -> None:
    session = SimpleNamespace(
        restore=lambda: 25,
        plan=SimpleNamespace(steps=40),
        mesh=SimpleNamespace(from_first=lambda value: value),
        stop_requested=lambda: None,
    )
    assert train(cast("Any", session), until=until) == "paused"
