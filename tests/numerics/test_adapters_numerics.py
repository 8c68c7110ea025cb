"""Models with adapters train the same at each ZeRO stage and on one or two ranks, resume to the bit, and are merged
into plain models that measure the same."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shardyard.engine.inference.adapter import export_adapter
from shardyard.engine.inference.load import export_checkpoint, load_trained
from shardyard.engine.run import Job
from shardyard.models.adapters.merging import merged
from shardyard.models.adapters.nf4 import dequantize, quantize
from shardyard.models.build import architecture_config, skeleton
from shardyard.recipe.loading.load import parse_recipe
from shardyard.recipe.schema import Adapter, Model
from shardyard.tracking.run.folder import read_metrics
from support.objectives import instruction, preference
from support.pretrained import write_pretrained
from support.ranks import run_jobs, sampled_stages
from support.tiny import CONFIGS, copy_checkpoint, tiny_job

pytestmark = pytest.mark.slow

STEPS, HALF, TOLERANCE = 8, 4, 1e-4
ADAPTER = {"rank": 4, "alpha": 8.0}
# Wide enough that ZeRO-3 partitions the weights: it leaves those below 100,000 elements whole.
WIDE = {"intermediate_size": 4096}
MIXTURE: dict[str, Any] = {
    **CONFIGS["llama"],
    "head_dim": 16,
    "moe_intermediate_size": 512,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}
# Name → family, objective's case, adapter. GPT-2 has Conv1D layers, whose weights lie the other way round.
VARIANTS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "lora": ("llama", instruction, {**ADAPTER, "targets": ["q_proj", "v_proj", "down_proj"]}),
    "nf4": ("gpt2", instruction, {**ADAPTER, "targets": ["c_attn"], "quantize": "nf4"}),
    "preference": ("gpt2", preference, ADAPTER),
    "experts": ("qwen3_moe", instruction, {**ADAPTER, "rslora": True}),
    "dora": (
        "llama",
        instruction,
        {**ADAPTER, "dora": True, "targets": ["q_proj", "gate_proj"], "loraplus_ratio": 4.0},
    ),
    "pissa": ("llama", instruction, {**ADAPTER, "init": "pissa", "targets": ["v_proj", "up_proj"]}),
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {"gpt2": {"n_positions": 96}, "qwen3_moe": MIXTURE, "llama": {}}
# Stage 2 is among those of every variant, because tests below compare it with stage 3.
CASES = [(name, stage) for name in VARIANTS for stage in sampled_stages(2)]
# One rank shards nothing below stage 3, so there it trains at the first stage and at the last.
ALONE = (0, 3)


@dataclass(frozen=True)
class Trained:
    """Where the same recipe trained: at once on one and on two ranks, and at stages that shard, the second half on two
    other ranks, from the checkpoint that the first two left in the middle."""

    alone: Job
    straight: Job
    broken: Job


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], Trained]:
    jobs = {case: _jobs(tmp_path_factory.mktemp(case[0]), *case) for case in CASES}
    straight = [one.straight for one in jobs.values()]
    run_jobs([*(one.alone for (_, stage), one in jobs.items() if stage in ALONE), *straight])
    broken = [one for (_, stage), one in jobs.items() if stage]
    for one in broken:
        copy_checkpoint(one.straight, one.broken, HALF)
    run_jobs([one.broken for one in broken])
    return jobs


def _jobs(folder: Path, variant: str, stage: int) -> Trained:
    family, case, adapter = VARIANTS[variant]
    fields = case.recipe_fields(case.write_data(folder))
    config = CONFIGURATIONS[family] | (WIDE if variant in ("dora", "pissa") else {})
    start = write_pretrained(folder / "start", family, **config)
    fields["model"] = {"family": family, "pretrained": str(start), "dropout": 0.0, "adapter": adapter}
    fields["zero"] = {"stage": stage}
    fields["optimizer"] = {"name": "adamw", "lr": 1e-2}

    def job(name: str, world_size: int) -> Job:
        recipe = parse_recipe({**fields, "name": name, "cluster": {"workers": world_size}})
        return tiny_job(recipe, folder / "runs", world_size=world_size)

    return Trained(job("alone", 1), job("straight", 2), job("broken", 2))


def _curve(job: Job) -> list[float]:
    return [line["train/loss"] for line in read_metrics(job.folder.metrics) if "train/loss" in line]


def _measured(job: Job) -> dict[str, float]:
    lines = [line for line in read_metrics(job.folder.metrics) if "eval/validation/loss" in line]
    return {name: value for name, value in lines[-1].items() if name.startswith("eval/")}


def _final(job: Job) -> dict[str, torch.Tensor]:
    return load_file(job.folder.path / "final" / "model.safetensors")


def _start(job: Job) -> dict[str, torch.Tensor]:
    assert job.recipe.model.pretrained is not None
    return load_file(Path(job.recipe.model.pretrained) / "model.safetensors")


@pytest.mark.parametrize(("variant", "stage"), CASES)
def test_stages_and_ranks_agree(trained: dict[tuple[str, int], Trained], variant: str, stage: int) -> None:
    reference = _curve(trained[variant, 0].alone)
    assert len(reference) == len(set(reference)) == STEPS
    one = trained[variant, stage]
    for job in (one.alone, one.straight) if stage in ALONE else (one.straight,):
        worst = max(abs(a - b) / abs(b) for a, b in zip(_curve(job), reference, strict=True))
        assert worst < TOLERANCE, f"relative difference {worst:.2e}\n{_curve(job)}\n{reference}"


# What a break could lose of an adapter is the same at stage 0: test_resume has it.
@pytest.mark.parametrize(("variant", "stage"), [case for case in CASES if case[1] > 0])
def test_a_break_changes_nothing(trained: dict[tuple[str, int], Trained], variant: str, stage: int) -> None:
    one = trained[variant, stage]
    attempts = map(json.loads, (one.broken.folder.path / "events.jsonl").read_text().splitlines())
    assert [event["resumed_step"] for event in attempts if event["kind"] == "attempt"] == [HALF]
    assert _curve(one.broken) == _curve(one.straight)[HALF:]
    assert _measured(one.broken) == _measured(one.straight)
    ours, theirs = _final(one.broken), _final(one.straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(("variant", "stage"), CASES)
def test_the_merged_model_measures_the_same(trained: dict[tuple[str, int], Trained], variant: str, stage: int) -> None:
    job = trained[variant, stage].straight
    found = load_trained(job.folder).evaluate()
    for name, value in _measured(job).items():
        assert math.isclose(found[name.rpartition("/")[2]], value, rel_tol=1e-5, abs_tol=1e-6), name


@pytest.mark.parametrize(("variant", "stage"), [case for case in CASES if case[1] > 0])
def test_a_checkpoint_is_merged_to_the_same_weights(
    trained: dict[tuple[str, int], Trained], variant: str, stage: int, tmp_path: Path
) -> None:
    job = trained[variant, stage].straight
    exported = load_file(export_checkpoint(job.folder, None, tmp_path / "model") / "model.safetensors")
    final = _final(job)
    assert exported.keys() == final.keys()
    for name, tensor in final.items():
        torch.testing.assert_close(exported[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["experts", "dora", "pissa"])
def test_peft_loads_what_stage_3_trained_and_the_stages_end_alike(
    trained: dict[tuple[str, int], Trained], variant: str, tmp_path: Path
) -> None:
    job = trained[variant, 3].straight
    path = export_adapter(job.folder, None, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(str(job.recipe.model.pretrained))
    whole = AutoModelForCausalLM.from_pretrained(job.folder.final).eval()
    adapted = PeftModel.from_pretrained(base, path).eval()
    ids = torch.tensor([[256, *b"the model"]])
    with torch.no_grad():
        expected = whole(input_ids=ids).logits
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-3)
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(input_ids=ids).logits, expected, atol=1e-1)
    other = _final(trained[variant, 2].straight)
    for name, tensor in _final(job).items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("variant", ["lora", "nf4", "preference"])
def test_only_the_targets_change_and_by_no_more_than_the_rank(
    trained: dict[tuple[str, int], Trained], variant: str
) -> None:
    job = trained[variant, 2].straight
    adapter = job.recipe.model.adapter
    assert adapter is not None
    before, after = _start(job), _final(job)
    changed = 0
    for name, tensor in before.items():
        if adapter.quantize and name.endswith("weight") and tensor.dim() == 2 and ".h." in name:
            tensor = dequantize(*quantize(tensor.T), tensor.T.shape).T
        update = after[name] - tensor
        targeted = any(f".{target}." in name for target in adapter.targets) if adapter.targets else ".h." in name
        if targeted and tensor.dim() == 2:
            singular = torch.linalg.svdvals(update)
            assert int((singular > 1e-5 * singular[0]).sum()) == adapter.rank, name
            changed += 1
        else:
            assert torch.equal(after[name], tensor), name
    assert changed == {"lora": 6, "nf4": 2, "preference": 8}[variant]


def test_merging_adds_the_scaled_product() -> None:
    """W + alpha / r · B·A, and its transpose for a Conv1D."""
    torch.manual_seed(0)
    base, down, up = torch.randn(32, 96), torch.randn(4, 32), torch.randn(96, 4)
    layer = "transformer.h.0.attn.c_attn"
    weights = {
        f"{layer}.base_layer.weight": base,
        f"{layer}.lora_A.default.weight": down,
        f"{layer}.lora_B.default.weight": up,
    }
    model = Model(family="gpt2", config=CONFIGS["gpt2"])
    plain = skeleton(model, architecture_config(model, vocabulary=257))
    found = merged(weights, Adapter(rank=4, alpha=2.0), plain)
    assert list(found) == [f"{layer}.weight"]
    torch.testing.assert_close(found[f"{layer}.weight"], base + 0.5 * (up @ down).T)
