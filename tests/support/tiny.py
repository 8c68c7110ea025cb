"""Recipes that train in seconds, on text that is the same for every version of Python."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

from shardyard.engine.run import Job
from shardyard.launch.run.prepare import prepare
from shardyard.planning.plan import World
from shardyard.recipe.loading.load import dump_recipe, parse_recipe
from shardyard.recipe.schema import Recipe
from shardyard.tracking.run.folder import RunFolder

# The golden losses depend on these words and their order: they are data, and no renaming touches them.
WORDS = (
    *("the", "a", "model", "batch", "token", "rank", "shard", "loss"),
    *("step", "data", "row", "lane", "seed", "stage", "weight"),
)

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 64},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
    },
}
# Heads that two and four ranks can share.
LLAMA_SIZES = {**CONFIGS["llama"], "num_attention_heads": 4, "num_key_value_heads": 4}
CONFIGS["qwen2"] = CONFIGS["llama"]
CONFIGS["mixtral"] = CONFIGS["llama"] | {"num_local_experts": 4, "num_experts_per_tok": 2}


def write_corpus(folder: Path, documents: int = 400, seed: int = 0) -> Path:
    """JSON Lines of made-up sentences; the same for the same arguments, whatever the machine."""
    generator = random.Random(seed)
    path = folder / f"corpus-{documents}-{seed}.jsonl"
    with path.open("w") as file:
        for _ in range(documents):
            words = generator.choices(WORDS, k=generator.randint(3, 40))
            file.write(json.dumps({"text": " ".join(words)}) + "\n")
    return path


def tiny_recipe(corpus: Path, *, family: str = "gpt2", **sections: Any) -> Recipe:
    """A recipe of two layers; `sections` are merged over it, one level deep."""
    base: dict[str, Any] = {
        "name": "tiny",
        "model": {"family": family, "config": CONFIGS[family], "dropout": 0.0},
        "data": {
            "sequence_length": 32,
            "streams": 4,
            "shuffle_window": 16,
            "train": [{"path": str(corpus), "holdout": 0.1}],
        },
        "train": {"steps": 20, "global_batch": 8, "precision": "fp32", "seed": 7},
        "optimizer": {"name": "adamw", "lr": 3e-3, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup": 5},
        "zero": {"stage": 0},
        "checkpoint": {"every": 10},
        "evaluate": {"every": 10, "rows": 8},
        "tracking": {"wandb": {"mode": "disabled"}},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return parse_recipe(base)


def tiny_job(recipe: Recipe, runs: Path, *, world_size: int = 1, until: int | None = None) -> Job:
    """A job with a new run folder."""
    plan = prepare(recipe, World(size=world_size, gpu=False))
    text = dump_recipe(recipe)
    folder = RunFolder.create(runs, recipe.name, text, text, world_size=world_size, total_steps=plan.steps)
    return Job(recipe, plan, folder, until)


def copy_checkpoint(source: Job, target: Job, step: int) -> None:
    """What a run left at a step is where another begins."""
    name = f"step-{step:08}"
    shutil.copytree(source.folder.checkpoints / name, target.folder.checkpoints / name)
