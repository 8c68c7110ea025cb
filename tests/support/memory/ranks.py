"""Peak memory of ranks while pretrained weights are loaded at ZeRO stage 3 and exported.

The measure is the largest resident size of a rank (the kernel's high-water mark, which misses no short peak) over that
of the process with everything imported. It counts pages of files that are mapped, too, but weights are read and written
without mapping files.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import deepspeed
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

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
from support.tiny import tiny_job, tiny_recipe, write_corpus

ROWS = 32_000


@dataclass(frozen=True)
class Peaks:
    """Bytes over the process with everything imported.

    share: the rank's part of all weights, in the precision of training. block: the larger of the largest layer and the
    largest weight outside of layers, such as the embeddings. load, export: what the rank needed at most.
    """

    share: int
    block: int
    load: int
    export: int

    @property
    def bound(self) -> int:
        """What a rank may need."""
        return self.share + self.block


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


def make_job(folder: Path, parameters: float, ranks: int, precision: str = "bf16") -> Job:
    """A run of the model at ZeRO stage 3; its files are in bf16."""
    start = write_model(folder / "start", parameters)
    recipe = tiny_recipe(
        write_corpus(folder, 100),
        family="llama",
        model={"config": {}, "pretrained": str(start)},
        zero={"stage": 3},
        train={"precision": precision},
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


def measure(rank: Rank, job: Job, destination: str, whole: bool, shard_bytes: int) -> Peaks:
    """Load the weights of a job's model without an optimizer and export them; all ranks call this.

    Args:
        whole: load every weight on every rank, as before.
    """
    quirks.compile_no_operation()
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    components, mesh = make_components(job.recipe), make_mesh(job.plan.mesh, rank)

    def leave(engine: Any, folder: str) -> None:
        weights = EngineWeights(engine, mesh)
        given: Any = {"tokenizer": None, "card": "", "shard_bytes": shard_bytes, "ranks": mesh.world}
        export_model(Path(folder), config=engine.module.config, weights=weights, **given)

    # What is imported late, by a model of the same family.
    small = write_model(Path(f"{destination}-small-{rank.rank}"), 1e5)
    tiny = job.recipe.model.model_copy(update={"pretrained": str(small)})
    first = construct_in_slices(tiny, architecture_config(tiny, vocabulary=257))
    leave(start_frozen(job.plan, first.model.requires_grad_(False), first.sources), f"{destination}-small")
    del first
    given: Any = (job.recipe.model, components.config)
    construct_in_slices(*given)
    before = peak_bytes(reset=True)
    loaded = construct_pretrained(*given) if whole else construct_in_slices(*given)
    model, sources = loaded.model.requires_grad_(False), loaded.sources or Sources()
    del loaded
    engine: Any = start_frozen(job.plan, model, sources)
    load = peak_bytes() - before
    peak_bytes(reset=True)
    leave(engine, destination)
    export = peak_bytes() - before
    sizes = {name: one.ds_numel * one.element_size() for name, one in engine.module.named_parameters()}
    return Peaks(sum(sizes.values()) // mesh.data.size, block_bytes(sizes), load, export)


def block_bytes(weights: Mapping[str, int]) -> int:
    """The size of one block, of the sizes of weights by name: the larger of the largest layer and the largest other."""
    blocks: dict[str, int] = defaultdict(int)
    for name, size in weights.items():
        layer = re.match(r"(.*\.layers\.\d+)\.", name)
        blocks[layer[1] if layer else name] += size
    return max(blocks.values())
