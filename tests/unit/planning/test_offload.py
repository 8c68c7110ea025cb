"""What a plan says of optimizer states in files: space, buffers, traffic, and the library that they need."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shardyard import async_io
from shardyard.async_io import missing_for_async_io
from shardyard.errors import RecipeError
from shardyard.launch.run import host
from shardyard.launch.run.host import refuse_on_this_host
from shardyard.planning.memory import estimate_memory
from shardyard.planning.plan import RunPlan, World, make_plan
from shardyard.planning.plan_text import rows
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.mesh import data_mesh
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes
from support.measured import GPT2


def recipe_of(zero: dict[str, Any]) -> Recipe:
    data = {"sequence_length": 64, "train": [{"source": "python-docs"}]}
    train = {"steps": 10, "global_batch": 8, "precision": "bf16"}
    return parse_recipe(
        {
            "name": "plan",
            "model": {"family": "gpt2"},
            "tokenizer": "bytes",
            "data": data,
            "train": train,
            "optimizer": {"name": "adamw", "lr": 1e-3},
            "zero": zero,
        }
    )


def plan_of(size: int, zero: dict[str, Any]) -> RunPlan:
    return make_plan(recipe_of(zero), GPT2, World(size=size, gpu=False))


NVME = {"stage": 3, "offload_optimizer": "nvme", "nvme_path": "/disk"}


def test_what_lies_on_a_disk_counts_as_files_and_buffers() -> None:
    zero = NVME | {"sub_group_size": 1000}
    held = estimate_memory(recipe_of({"stage": 3}), GPT2, data_mesh(4), micro_batch=1)
    moved = estimate_memory(recipe_of(zero), GPT2, data_mesh(4), micro_batch=1)
    owned = GPT2.parameters // 4
    assert moved.optimizer_bytes == 0
    assert moved.swapped_bytes == held.optimizer_bytes + 4 * owned, "Adam's states and weights, and the gradients"
    matrix = max(GPT2.vocabulary * GPT2.hidden_size, 4 * GPT2.hidden_size**2) // 4
    assert moved.offloaded_bytes == 5 * 4 * min(owned, 1000 + matrix), "the buffers"
    assert held.device_bytes - moved.device_bytes == held.optimizer_bytes


def test_a_plan_says_what_lies_on_a_disk_and_travels() -> None:
    plan = plan_of(2, NVME)
    told = {name: (value, why) for name, value, why in rows(plan)}
    each = format_bytes(plan.memory.swapped_bytes)
    assert told["disk a rank"] == (each, "optimizer states and gradients in fp32, in files of zero.nvme_path")
    assert told["disk traffic"] == (f"{each} read, {each} written", "by each rank in every step")
    assert "disk a rank" not in {name for name, _, _ in rows(plan_of(2, {"stage": 3}))}


def test_a_missing_library_is_named_with_ways_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The compiler itself says what is missing."""
    monkeypatch.setattr(async_io, "_PROGRAM", "#include <libaio-that-nobody-has.h>\nint main() {}\n")
    missing = missing_for_async_io()
    assert missing is not None
    assert missing.startswith("libaio is missing here; install libaio with its headers: apt-get install libaio-dev")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert str(missing_for_async_io()).startswith("there is no C++ compiler (c++, g++)")


def test_the_library_is_found_where_the_compiler_finds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = []

    def compile_(command: list[str], **more: Any) -> Any:
        commands.append((command, more["input"]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", compile_)
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert missing_for_async_io() is None
    [(command, program)] = commands
    assert (command[0], command[-1]) == ("/bin/c++", "-laio")
    assert "libaio.h" in program


def test_a_launch_without_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "missing_for_async_io", lambda: "libaio is missing here")
    with pytest.raises(
        RecipeError, match=r"zero\.offload_optimizer: nvme reads and writes with libaio: libaio is miss"
    ):
        refuse_on_this_host(recipe_of(NVME), gpu=True)
    refuse_on_this_host(recipe_of({"stage": 3, "offload_optimizer": "cpu"}), gpu=True)
