"""A launch through Ray whose two ranks share every layer: planned, trained, sampled from, exported whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from support.cli import Command, write_recipe
from support.tiny import write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def test_two_ranks_of_ray_share_every_layer(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        write_corpus(tmp_path),
        model={"family": "llama", "config": CONFIG, "dropout": 0.0},
        train={"steps": 4},
        schedule={"warmup": 1},
        checkpoint={"every": 4},
        evaluate={"every": 4, "rows": 4},
        parallel={"tensor": 2},
    )
    with Command("launch", recipe, runs=tmp_path / "runs") as command:
        code, output = command.finish()
    assert code == 0, output
    assert len(command.metrics()) == 4
    manifest = json.loads((command.folder / "checkpoints" / "step-00000004" / "manifest.json").read_text())
    assert (manifest["world_size"], manifest["tensor_parallel"]) == (2, 2)
    (sample,) = (command.folder / "samples.jsonl").read_text().splitlines()
    assert json.loads(sample)["text"]
    model = AutoModelForCausalLM.from_pretrained(command.folder / "final")
    query = model.model.layers[0].self_attn.q_proj.weight
    stored = load_file(command.folder / "final" / "model.safetensors")
    assert query.shape == (32, 32)
    assert torch.equal(query, stored["model.layers.0.self_attn.q_proj.weight"])
