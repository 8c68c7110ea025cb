"""A launch after one that was killed while it compiled an operation of DeepSpeed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import CPUAdamBuilder

from shardyard.engine.deepspeed import build_locks
from support.cli import Command, write_recipe
from support.tiny import write_corpus

pytestmark = pytest.mark.slow


def test_a_launch_removes_a_lock_that_a_killed_one_has_left(tmp_path: Path) -> None:
    built = tmp_path / "extensions" / "cpu_adam"
    before = build_locks.root() / f"py{sys.version_info.major}{sys.version_info.minor}{sys.abiflags}_cpu" / "cpu_adam"
    # Compiling takes a minute: once, where the other tests look for it too.
    CPUAdamBuilder().load(verbose=False)
    shutil.copytree(before, built)
    (built / "lock").touch()
    recipe = write_recipe(
        tmp_path,
        write_corpus(tmp_path),
        zero={"stage": 2, "offload_optimizer": True},
        train={"steps": 10},
        cluster={"workers": 2},
    )
    variables = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions")}
    with Command("launch", recipe, runs=tmp_path / "runs", **variables) as command:
        code, output = command.finish()
    assert code == 0, output
    assert not (built / "lock").exists()
    said = [*(command.folder / "logs").glob("*.log"), command.folder / "events.jsonl"]
    assert any(f"removed {built / 'lock'}" in path.read_text(errors="replace") for path in said), output
