"""Families in which position ids isolate nothing: launched, stopped and resumed, by Ray and without it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from shardyard.tracking.run.folder import read_metrics
from support.cli import Command, write_recipe
from support.tiny import write_corpus

pytestmark = pytest.mark.slow

MODELS: dict[str, dict[str, Any]] = {
    "mask": {
        "family": "roberta",
        "config": {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 66,
        },
    },
    "rows": {"family": "mamba", "config": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}},
}
SETTINGS: dict[str, Any] = {
    "train": {"steps": 8, "global_batch": 4, "precision": "fp32"},
    "cluster": {"workers": 1},
    "checkpoint": {"every": 4},
    "evaluate": {"every": 8, "rows": 4},
    "sample": {"prompts": []},
}


def run(runs: Path, *arguments: object) -> tuple[Path, str]:
    """The run folder of a command that succeeds, and what it printed."""
    with Command(*arguments, runs=runs) as command:
        code, output = command.finish()
    assert code == 0, output
    return command.folder, output


@pytest.mark.parametrize(("isolation", "through_ray"), [("mask", "the resumed run"), ("rows", "the straight run")])
def test_documents_are_kept_apart_and_a_resumed_run_changes_no_bit(
    tmp_path: Path, isolation: str, through_ray: str
) -> None:
    corpus = write_corpus(tmp_path)
    recipe = write_recipe(tmp_path, corpus, model={**MODELS[isolation], "dropout": None}, **SETTINGS)
    local = {"the straight run": ("--local",), "the resumed run": ("--local",), through_ray: ()}
    straight, output = run(tmp_path / "straight", "launch", recipe, *local["the straight run"])
    halved, _ = run(tmp_path / "halved", "launch", recipe, "--until", 4, *local["the resumed run"])
    run(tmp_path / "halved", "resume", halved.name)

    assert f"isolation {isolation}: positions: logits differ" in output
    resolved = YAML(typ="safe").load(halved / "resolved.yaml")
    assert resolved["data"]["isolation"] == isolation
    exported = [load_file(folder / "final" / "model.safetensors") for folder in (straight, halved)]
    assert exported[0].keys() == exported[1].keys()
    for name, tensor in exported[0].items():
        assert torch.equal(tensor, exported[1][name]), name
    if isolation == "mask":
        assert YAML(typ="safe").load(straight / "final" / "config.json")["is_decoder"] is True
        assert resolved["model"]["config"]["is_decoder"] is True
        assert "is_decoder is set" in output
    else:
        assert "the first 64 rows of the local data are" in output
        filled = [line["data/row_fill"] for line in read_metrics(straight / "metrics.jsonl")]
        assert 0 < min(filled) < 1
        assert max(filled) <= 1
