"""Pretrained weights at ZeRO stage 3: what each rank reads in slices is to the bit what whole loading gives."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from shardyard.engine.components import make_components
from shardyard.engine.deepspeed import engine as starting
from shardyard.engine.deepspeed.engine import start_engine
from shardyard.engine.deepspeed.sharding import start_frozen
from shardyard.engine.mesh import make_mesh
from shardyard.engine.run import Job
from shardyard.engine.world import Rank
from shardyard.models.frozen import frozen_causal_lm
from shardyard.models.slices.quirks import WholeNeededError
from shardyard.recipe.precision import precision_of
from shardyard.replaced import replaced
from support.pretrained import write_pretrained
from support.ranks import run_ranks
from support.tiny import tiny_job, tiny_recipe, write_corpus

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Case:
    """family: of the model. sections: of its recipe. shards: files of at most so many bytes. body: saved without head.
    whole: the reason why it is loaded whole all the same."""

    family: str
    sections: dict[str, Any]
    shards: int | None = None
    body: bool = False
    whole: str | None = None


LORA = {"adapter": {"rank": 2, "targets": ["q_proj", "v_proj"]}}
BF16 = {"train": {"precision": "bf16"}}
CASES = {
    "tied": Case("gpt2", {}),
    "tied-bf16": Case("gpt2", BF16),
    "resized": Case("llama", {"model": {"vocabulary_multiple": 64}}),
    "files": Case("llama", {}, shards=20_000),
    "body": Case("qwen2", BF16, body=True),
    "experts": Case("mixtral", {}, shards=50_000),
    "experts-bf16": Case("mixtral", BF16),
    "frozen": Case("llama", {"model": {"freeze": ["model.embed_tokens.*"]}}),
    "adapter": Case("llama", {"model": LORA, **BF16}),
    "adapter-nf4": Case("llama", {"model": {"adapter": {**LORA["adapter"], "quantize": "nf4"}}}),
    "adapter-pissa": Case("llama", {"model": {"adapter": {**LORA["adapter"], "init": "pissa"}}}, whole="computed"),
    "stage-1": Case("llama", {"zero": {"stage": 1}, "model": {"vocabulary_multiple": 64}, **BF16}),
    "stage-2": Case("gpt2", {"zero": {"stage": 2}, **BF16}, body=True),
    "stage-0": Case("mixtral", {"zero": {"stage": 0}, **BF16}),
    "stage-1-adapter": Case("llama", {"zero": {"stage": 1}, "model": LORA, **BF16}),
    "pickle": Case("gpt2", {}, whole="no safetensors"),
    "spread": Case("mixtral", {"parallel": {"expert": 2}}, whole="cut whole layers"),
    "offloaded": Case("gpt2", {"zero": {"offload_parameters": True}, **BF16}),
}


# Cases whose weights are those of a frozen model too.
FROZEN = ("tied", "tied-bf16", "resized", "experts-bf16")


def _write(folder: Path, name: str, case: Case, corpus: Path) -> Job:
    start = write_pretrained(folder / name, case.family)
    if case.shards is not None or case.body:
        model = AutoModelForCausalLM.from_pretrained(start)
        saved = model.base_model if case.body else model
        for file in start.glob("*.safetensors*"):
            file.unlink()
        saved.save_pretrained(start, max_shard_size=case.shards or "1GB")
    if name == "pickle":
        model = AutoModelForCausalLM.from_pretrained(start)
        (start / "model.safetensors").unlink()
        torch.save(model.state_dict(), start / "pytorch_model.bin")
    sections = {key: dict(value) for key, value in case.sections.items()}
    sections["model"] = {"config": {}, "pretrained": str(start), **sections.get("model", {})}
    recipe = tiny_recipe(
        corpus, family=case.family, zero={"stage": 3, **sections.pop("zero", {})}, cluster={"workers": 2}, **sections
    )
    return tiny_job(recipe, folder / "runs", world_size=2)


def _engine_state(job: Job, rank: Rank) -> tuple[dict[str, Tensor], list[str]]:
    told: list[str] = []
    components = make_components(job.recipe)
    engine = start_engine(job.recipe, job.plan, components.config, make_mesh(job.plan.mesh, rank), told.append)
    state = dict(engine.module.named_buffers())
    for name, parameter in engine.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = parameter.detach().clone()
            state[f"{name}.requires_grad"] = torch.tensor(parameter.requires_grad)
    masters = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    for number, flat in enumerate(next((getattr(engine.optimizer, one, None) or [] for one in masters), [])):
        state[f"master.{number}"] = flat.detach().clone()
    tied = {name for name, _ in engine.module.named_parameters(remove_duplicate=False)}
    state["names"] = torch.tensor(sorted(map(hash, tied)))
    engine.destroy()
    return state, told


def frozen_models(rank: Rank, job: Job) -> tuple[float, float, float]:
    """How far the outputs of a sharded frozen model are from those of a whole one; its share of the weights, and
    whether the embeddings of another size are the same."""
    name, precision = str(job.recipe.model.pretrained), precision_of(job.recipe)
    # New rows are the mean of others: in slices of stored ones, as in the trained model; whole, of rounded ones.
    rows = 320 if precision == "fp32" else 257
    given: dict[str, Any] = {"vocabulary": rows, "precision": precision, "device": rank.device, "resize_seed": 5}
    entire = frozen_causal_lm(name, **given)
    sharded = frozen_causal_lm(name, **given, shard=partial(start_frozen, job.plan))
    ids = torch.randint(0, rows, (2, 16), generator=torch.Generator().manual_seed(rank.rank))
    with torch.no_grad():
        # Again, because ZeRO-3 gathers ahead from the second pass on.
        outputs = [sharded(input_ids=ids, use_cache=False).logits for _ in range(2)]
        expected = entire(input_ids=ids, use_cache=False).logits
    away = max(float((output.float() - expected.float()).abs().max()) for output in outputs)
    parts: list[Any] = list(sharded.parameters())
    # Beside its parts, small parameters stay gathered after a pass.
    held = sum(one.ds_tensor.numel() for one in parts)
    return away, held / sum(one.ds_numel for one in parts), float(any(one.requires_grad for one in parts))


def compare(rank: Rank, jobs: dict[str, Job]) -> dict[str, tuple[list[str], list[str]]]:
    """For each job the tensors that differ between both ways of loading, and what was told of the first."""

    def refuse(*_: object, **__: object) -> None:
        raise WholeNeededError("the test compares with it")

    found = {}
    for name, job in jobs.items():
        sliced, told = _engine_state(job, rank)
        with replaced(starting, "construct_in_slices", refuse):
            entire, _ = _engine_state(job, rank)
        differing = sorted(sliced.keys() ^ entire.keys())
        for key in sliced.keys() & entire.keys():
            one, other = sliced[key], entire[key]
            if one.dtype != other.dtype or one.device != other.device or not torch.equal(one, other):
                differing.append(key)
        found[name] = differing, told
    for name in (one for one in FROZEN if one in jobs):
        away, share, trained = frozen_models(rank, jobs[name])
        found[f"frozen {name}"] = [f"{away} {share} {trained}"] if away > 1e-6 or share > 0.65 or trained else [], []
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, tuple[list[str], list[str]]]]:
    folder = tmp_path_factory.mktemp("slices")
    corpus = write_corpus(folder, 100)
    jobs = {name: _write(folder, name, case, corpus) for name, case in CASES.items()}
    return run_ranks(2, compare, jobs)


@pytest.mark.parametrize("name", CASES)
def test_slices_are_what_whole_loading_gives(compared: list[dict[str, tuple[list[str], list[str]]]], name: str) -> None:
    for found in compared:
        differing, told = found[name]
        assert not differing
        reasons = [text for text in told if "cannot be read in slices" in text]
        expected = CASES[name].whole
        assert bool(reasons) == (expected is not None), told
        assert expected is None or expected in reasons[0]


@pytest.mark.parametrize("name", FROZEN)
def test_a_sharded_frozen_model_answers_as_a_whole_one(
    compared: list[dict[str, tuple[list[str], list[str]]]], name: str
) -> None:
    for found in compared:
        assert found[f"frozen {name}"] == ([], [])
