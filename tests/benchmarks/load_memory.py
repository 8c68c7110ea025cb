"""Peak memory of ranks while pretrained weights are loaded at ZeRO stage 3 and exported, beside each rank's share.

Writes a decoder of about `--parameters` weights in bf16, loads it on `--ranks` gloo ranks, and exports it.
Memory is the largest resident size of a rank over that of the process with everything imported.

    python tests/benchmarks/load_memory.py --parameters 1e9 --ranks 4
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from shardyard.engine.checkpoint.weights import EngineWeights
from shardyard.engine.components import make_components
from shardyard.engine.deepspeed import quirks
from shardyard.engine.deepspeed.sharding import start_frozen
from shardyard.engine.mesh import make_mesh
from shardyard.engine.run import Job
from shardyard.engine.world import Rank
from shardyard.models.build import architecture_config, construct_in_slices, construct_pretrained
from shardyard.models.export.export import export_model
from shardyard.models.slices.sources import Sources
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

ROWS = 32_000
SHARD_BYTES = 500 * 10**6


@dataclass(frozen=True)
class Peaks:
    """Bytes over the imported process; share and block are what a rank has to hold."""

    share: int
    block: int
    load: int
    export: int


def write_model(folder: Path, parameters: float) -> Path:
    """A llama in bf16, in a file for each layer, so that no process holds it whole."""
    width = max(64, round(math.sqrt(parameters / 60) / 64) * 64) if parameters < 5e8 else 2048
    vocabulary = min(ROWS, max(320, round(parameters / 20 / width)))
    layer = width * width * 11
    layers = max(2, round((parameters - 2 * vocabulary * width) / layer))
    config = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        intermediate_size=width * 7 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        vocab_size=vocabulary,
        max_position_embeddings=64,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 256),
    )
    with torch.device("meta"):
        shapes = {name: one.shape for name, one in AutoModelForCausalLM.from_config(config).named_parameters()}
    folder.mkdir()
    config.save_pretrained(folder)
    generator, files = torch.Generator().manual_seed(0), dict[str, str]()
    for index, (name, shape) in enumerate(shapes.items()):
        files[name] = f"model-{index:05}.safetensors"
        value = torch.empty(shape, dtype=torch.bfloat16).normal_(std=0.02, generator=generator)
        save_file({name: value}, folder / files[name], metadata={"format": "pt"})
    index_ = {"metadata": {"total_size": 2 * sum(map(math.prod, shapes.values()))}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index_))
    return folder


def make_job(folder: Path, parameters: float, ranks: int) -> Job:
    """A run of the model at ZeRO stage 3 in bf16."""
    start = write_model(folder / "start", parameters)
    recipe = tiny_recipe(
        write_corpus(folder, 100),
        family="llama",
        model={"config": {}, "pretrained": str(start)},
        zero={"stage": 3},
        train={"precision": "bf16"},
        cluster={"workers": ranks},
    )
    return tiny_job(recipe, folder / "runs", world_size=ranks)


def peak_bytes(*, reset: bool = False) -> int:
    """The largest resident size since the last reset, of this process."""
    if reset:
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure(rank: Rank, job: Job, destination: str, whole: bool) -> Peaks:
    """Load the weights of a job's model without an optimizer and export them; all ranks call this."""
    import deepspeed

    quirks.compile_no_operation()
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    components, mesh = make_components(job.recipe), make_mesh(job.plan.mesh, rank)
    given: Any = (job.recipe.model, components.config)
    # What is imported late, and the buffers of the collectives, by a model of the same family.
    small = write_model(Path(f"{destination}-small-{rank.rank}"), 1e5)
    tiny = job.recipe.model.model_copy(update={"pretrained": str(small)})
    first = construct_in_slices(tiny, architecture_config(tiny, vocabulary=257))
    start_frozen(job.plan, first.model.requires_grad_(False), first.sources)
    construct_in_slices(*given)
    del first
    before = peak_bytes(reset=True)
    loaded = construct_pretrained(*given) if whole else construct_in_slices(*given)
    sources = loaded.sources or Sources()
    engine: Any = start_frozen(job.plan, loaded.model.requires_grad_(False), sources)
    load = peak_bytes() - before
    peak_bytes(reset=True)
    export_model(
        Path(destination),
        config=components.config,
        weights=EngineWeights(engine, mesh),
        tokenizer=None,
        card="",
        shard_bytes=SHARD_BYTES,
        ranks=mesh.world,
    )
    sizes = [one.ds_numel for one in engine.module.parameters()]
    share = 2 * sum(sizes) // mesh.data.size
    return Peaks(share, 2 * max(sizes), load, peak_bytes() - before)


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parameters", type=float, default=1e9)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--whole", action="store_true", help="also load every weight on every rank, as before")
    given = parser.parse_args()
    sys.stdout.write("| way | share MB | largest weight MB | load MB | export MB |\n|---|---|---|---|---|\n")
    with tempfile.TemporaryDirectory() as scratch:
        job = make_job(Path(scratch), given.parameters, given.ranks)
        for whole in (False, True) if given.whole else (False,):
            found = run_ranks(given.ranks, measure, job, f"{scratch}/final-{whole}", whole)
            largest = [max(getattr(one, name) for one in found) / 1e6 for name in ("share", "block", "load", "export")]
            row = " | ".join(f"{value:.0f}" for value in largest)
            sys.stdout.write(f"| {'whole' if whole else 'slices'} | {row} |\n")


if __name__ == "__main__":
    main()
