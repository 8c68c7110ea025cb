"""Weights of a folder, counted by the headers of their files; and a teacher's in a plan."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import RunPlan, World
from shardyard.recipe.schema import Recipe
from shardyard.recipe.sources.weight_files import weights_in
from support.tiny import tiny_recipe, write_corpus


def test_weights_of_all_files_are_counted(tmp_path: Path) -> None:
    assert weights_in(tmp_path) is None
    assert weights_in(tmp_path / "gone") is None
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, tmp_path / "1.safetensors", metadata={"format": "pt"})
    save_file({"c": torch.zeros((), dtype=torch.bfloat16)}, tmp_path / "2.safetensors")
    assert weights_in(tmp_path) == 15 + 7 + 1
    (tmp_path / "3.safetensors").write_bytes(b"\xff" * 100)
    assert weights_in(tmp_path) is None
    (tmp_path / "3.safetensors").write_bytes(b"\x02" + b"\0" * 7 + b"[]")
    assert weights_in(tmp_path) is None


def _plan(recipe: Recipe, ranks: int) -> RunPlan:
    return prepare(recipe, World(size=ranks, gpu=False))


def test_a_plan_counts_a_teacher_that_is_here_and_says_where_it_is_not(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    corpus = write_corpus(tmp_path, 20)

    def recipe(stage: int) -> Recipe:
        made = {"objective": "distillation", "distillation": {"teacher": str(teacher)}}
        return tiny_recipe(corpus, **made, zero={"stage": stage}, train={"precision": "fp32"})

    without = _plan(recipe(0), 2)
    assert without.reasons["parameters_bytes"].startswith("without the teacher")
    save_file({"weight": torch.zeros(1000, 10)}, teacher / "model.safetensors")
    told = _plan(recipe(0), 2)
    assert told.reasons["parameters_bytes"] == "with 10.0K weights of the teacher"
    assert told.memory.parameters_bytes == without.memory.parameters_bytes + 4 * 10_000
    shared = _plan(recipe(3), 2).memory.parameters_bytes
    teacher.joinpath("model.safetensors").unlink()
    assert shared == _plan(recipe(3), 2).memory.parameters_bytes + 4 * 10_000 // 2
