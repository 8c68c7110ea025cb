"""What a plan expects of each way to keep fewer activations, beside the peak that a step allocates, on one CPU rank.

    PYTHONPATH=tests python tests/benchmarks/activation_memory.py [--length 512] [--rows 4]

Llama of four layers at ZeRO stage 0, in fp32: weights, gradients and the optimizer are the same in every line, so the
difference from the first line is what the option spares.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from shardyard.engine.job import Job
from support.allocated import peaks
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

LLAMA = {
    "hidden_size": 256,
    "intermediate_size": 896,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WAYS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "selective": {"activation_checkpointing": "selective"},
    "full": {"activation_checkpointing": "full"},
    "full, each 2nd layer": {"activation_checkpointing": "full", "activation_checkpointing_interval": 2},
    "mlp_chunk 256": {"mlp_chunk": 256},
    "logits_chunk 256": {"logits_chunk": 256},
    "full, both chunks": {"activation_checkpointing": "full", "mlp_chunk": 256, "logits_chunk": 256},
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rows", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus = write_corpus(folder)

        def job(model: dict[str, Any], length: int) -> Job:
            recipe = tiny_recipe(
                corpus,
                model={"family": "llama", "config": {**LLAMA, "max_position_embeddings": length}, **model},
                data={"sequence_length": length},
                train={"steps": 2, "global_batch": given.rows, "micro_batch": given.rows, "precision": "fp32"},
                schedule={"warmup": 0},
                zero={"stage": 0},
                checkpoint={"every": 2},
                evaluate={"every": 2, "rows": 2},
            )
            return tiny_job(recipe, folder / "runs")

        jobs = [job({}, 16), *(job(model, given.length) for model in WAYS.values())]
        # The first run imports what all of them need.
        measured = run_ranks(1, peaks, jobs)[0][1:]
    sys.stdout.write("| option | planned | allocated | spares, planned | spares, measured |\n|---|---|---|---|---|\n")
    planned = [one.plan.memory.device_bytes for one in jobs[1:]]
    for name, ours, peak in zip(WAYS, planned, measured, strict=True):
        cells = [ours, peak, planned[0] - ours, measured[0] - peak]
        sys.stdout.write(f"| {name} | {' | '.join(f'{size / 1e6:.1f} MB' for size in cells)} |\n")


if __name__ == "__main__":
    main()
