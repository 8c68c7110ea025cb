"""What may change when a run goes on: stage, ranks and axes; not what the states in its checkpoints are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.engine.checkpoint import files
from shardyard.errors import UsageError
from shardyard.launch.run.plans import refuse_what_cannot_go_on
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder
from support.tiny import tiny_recipe


def recipe(**sections: Any) -> Recipe:
    return tiny_recipe(Path("corpus.jsonl"), family="llama", **sections)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder.create(tmp_path, "tiny", "", "")
    for step, precision in ((10, "bf16"), (20, "fp32")):
        files.partial_folder(folder.checkpoints, step).mkdir(parents=True)
        files.commit(folder.checkpoints, step, {}, world_size=4, zero_stage=1, precision=precision)
    return folder


def test_stage_ranks_and_axes_may_change(run: RunFolder) -> None:
    moved = recipe(zero={"stage": 3}, cluster={"workers": 4}, parallel={"tensor": 1, "sequence": 2})
    refuse_what_cannot_go_on(run, recipe(), moved, None)


def test_precision_and_optimizer_may_not_and_the_message_says_what_to_do(run: RunFolder) -> None:
    narrow = recipe(train={"precision": "bf16"})
    with pytest.raises(
        UsageError, match=r"step-00000020 was written with train.precision fp32, .*bf16.*shardyard export"
    ):
        refuse_what_cannot_go_on(run, recipe(), narrow, None)
    other = recipe(optimizer={"name": "lion", "lr": 1e-4})
    with pytest.raises(UsageError, match=r"optimizer.name adamw, and this run would have lion.*Leave optimizer.name"):
        refuse_what_cannot_go_on(run, recipe(), other, None)


def test_the_checkpoint_that_is_meant_decides(run: RunFolder) -> None:
    narrow = recipe(train={"precision": "bf16"})
    refuse_what_cannot_go_on(run, narrow, narrow, 10)
    with pytest.raises(UsageError, match="step-00000010"):
        refuse_what_cannot_go_on(run, recipe(), recipe(), 10)
    refuse_what_cannot_go_on(run, recipe(), narrow, 0)
    (files.committed_folder(run.checkpoints, 20) / "manifest.json").write_text("{")
    refuse_what_cannot_go_on(run, recipe(), narrow, None)
