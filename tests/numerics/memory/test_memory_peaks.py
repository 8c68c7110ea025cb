"""The memory that a plan predicts for small runs, against the peaks that they allocate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shardyard.engine.job import Job
from support.allocated import peaks
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow

LENGTH, ROWS = 256, 4
GPT2 = {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_positions": LENGTH}
LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": LENGTH,
}
MIXTRAL = LLAMA | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 384}
CONFIGS = {"gpt2": GPT2, "llama": LLAMA, "mixtral": MIXTRAL}
# Number of ranks → family, precision, ZeRO stage, fields of the model. Together: every stage in both precisions.
RUNS: dict[int, list[tuple[str, str, int, dict[str, Any]]]] = {
    1: [
        ("gpt2", "fp32", 0, {}),
        ("llama", "bf16", 1, {}),
        ("mixtral", "fp32", 2, {}),
        ("llama", "bf16", 3, {"activation_checkpointing": True}),
    ],
    2: [
        ("llama", "bf16", 0, {}),
        ("gpt2", "fp32", 1, {"activation_checkpointing": True}),
        ("gpt2", "bf16", 2, {}),
        ("llama", "fp32", 3, {}),
    ],
}


@pytest.mark.parametrize("ranks", RUNS)
def test_small_runs_allocate_what_their_plans_say(ranks: int, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path)

    def job(family: str, precision: str, stage: int, model: dict[str, Any], length: int = LENGTH) -> Job:
        recipe = tiny_recipe(
            corpus,
            family=family,
            model={"config": CONFIGS[family], **model},
            data={"sequence_length": length},
            train={"steps": 2, "global_batch": 2 * ROWS * ranks, "micro_batch": ROWS, "precision": precision},
            schedule={"warmup": 0},
            zero={"stage": stage, "bucket_bytes": 1_000_000},
            checkpoint={"every": 2},
            evaluate={"every": 2, "rows": 2},
        )
        return tiny_job(recipe, tmp_path / "runs", world_size=ranks)

    jobs = [job(*one) for one in RUNS[ranks]]
    # The first run imports what all of them need.
    of_ranks = run_ranks(ranks, peaks, [job("gpt2", "fp32", 0, {}, 8), *jobs])
    found = [max(peaks_of_job) for peaks_of_job in zip(*of_ranks, strict=True)][1:]
    planned = [one.plan.memory for one in jobs]
    table = [
        f"{one}: planned {memory.device_bytes / 1e6:.1f} MB, allocated {peak / 1e6:.1f} MB\n  {memory}"
        for one, memory, peak in zip(RUNS[ranks], planned, found, strict=True)
    ]
    off = [peak / memory.device_bytes - 1 for memory, peak in zip(planned, found, strict=True)]
    assert max(map(abs, off)) < 0.1, "\n".join(table)
