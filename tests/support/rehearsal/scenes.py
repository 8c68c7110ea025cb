"""A script run with two simulated GPUs: results of one process on them, reported as JSON on the last line."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pretended import cuda  # type: ignore[import-not-found]

from shardyard import hardware
from shardyard.cli.doctor.probe import check_collectives
from shardyard.data.stream.loader import Batch
from shardyard.engine import run
from shardyard.engine.inference.lm_eval import run_tasks
from shardyard.engine.inference.load import load_trained
from shardyard.engine.job import Job
from shardyard.engine.run import check_precision
from shardyard.engine.session import Session
from shardyard.errors import HardwareError, UsageError
from shardyard.launch.ray.ready import make_ready
from shardyard.launch.run.local import run_local
from shardyard.launch.run.prepare import prepare
from shardyard.launch.run.world import world_of
from shardyard.models.build import architecture_config, construct
from shardyard.models.kernels import use_liger
from shardyard.objectives.causal_lm.loss import causal_lm_loss
from shardyard.planning.plan_text import rows
from shardyard.recipe.loading.load import dump_recipe, parse_recipe
from shardyard.recipe.schema import Cluster, Model, Network, Recipe
from shardyard.replaced import replaced
from shardyard.tracking.metrics.machine import MachineWatch
from shardyard.tracking.metrics.meters import device_name, memory_metrics, peak_flops
from shardyard.tracking.run.folder import RunFolder, read_metrics
from shardyard.tracking.run.provenance import gpu_names
from support.rehearsal.waits import mark_host, watching
from support.tiny import CONFIGS, tiny_recipe, write_corpus
from support.waiting import until

STEPS = 4
# Family, precision and ZeRO stage of the runs whose waits are counted, and objectives beside them.
PLAIN = (("gpt2", "fp32", 0), ("gpt2", "bf16", 1), ("llama", "bf16", 2), ("mixtral", "bf16", 3))
ROWS = ("text_classification", "preference", "distillation")
QUESTIONS = [{"prompt": "a model", "chosen": " trains", "rejected": " sleeps"}] * 2
TASK = """task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {path}}}}}
test_split: validation
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: "{{{{[chosen, rejected]}}}}"
doc_to_target: 0
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
# Name → precision, ZeRO stage, and further fields of ZeRO and the optimizer.
RUNS: dict[str, tuple[str, int, dict[str, Any], dict[str, Any]]] = {
    "fp32-0": ("fp32", 0, {}, {}),
    "bf16-1": ("bf16", 1, {}, {}),
    "bf16-2": ("bf16", 2, {}, {}),
    "bf16-2-lion": ("bf16", 2, {}, {"name": "lion", "lr": 3e-4}),
    "fp16-3": ("fp16", 3, {}, {}),
    "bf16-1-flash": ("bf16", 1, {}, {}),
    "bf16-3-offload": ("bf16", 3, {"offload_optimizer": True, "offload_parameters": True}, {}),
}


def machine(folder: Path) -> dict[str, Any]:
    """Facts about the GPUs that need no training."""
    watch = MachineWatch(folder / "machines", "here", collects=True, gpu=True, period=0.05)
    sample: dict[str, float] = {}

    def sampled() -> bool:
        sample.update(watch.take())
        return "system/here/gpu.1.powerWatts" in sample

    until(sampled, "the machine watch says nothing of GPU 1")
    watch.close()
    return {
        "driver": gpu_names(),
        "torch": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "peak": peak_flops(device_name(), "bf16"),
        "memory": memory_metrics(),
        "sample": {name: value for name, value in sample.items() if "/gpu." in name},
        "world": [world_of(Cluster(workers=2)).gpu, world_of(Cluster(workers=2)).device_bytes],
    }


def refusals(folder: Path) -> dict[str, str]:
    """Messages for GPUs that are too old, hidden, or not used."""
    found = {}
    capability, cuda.CAPABILITY = cuda.CAPABILITY, (7, 0)
    try:
        check_precision("fp16", torch.device("cuda", 0))
        found["old"] = _refused(lambda: check_precision("bf16", torch.device("cuda", 0)))
    finally:
        cuda.CAPABILITY = capability
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        found["hidden"] = make_ready(Network(), "127.0.0.1", gpu=True, one_host=True, forwarded={}).problem
        found["local"] = _refused(lambda: world_of(Cluster(gpus_per_worker=1), local=True))
        found["memory"] = str(world_of(Cluster(gpus_per_worker=1)).device_bytes)
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    asked, hardware.CHOSEN_ACCELERATOR = hardware.CHOSEN_ACCELERATOR, "cpu"
    try:
        found["unwanted"] = make_ready(Network(), "127.0.0.1", gpu=True, one_host=True, forwarded={}).problem
        found["on the CPU"] = str(world_of(Cluster(workers=2)).gpu)
    finally:
        hardware.CHOSEN_ACCELERATOR = asked
    found["kernels"] = _refused(lambda: use_liger(torch.nn.Linear(2, 2), "llama", torch.device("cuda", 0)))
    found["gloo only"] = check_collectives({"gloo": True, "nccl": False, "gpus": gpu_names()}).advice
    found["none"] = make_ready(Network(), "127.0.0.1", gpu=True, one_host=True, forwarded={}).problem
    return found


def _refused(action: Callable[[], object]) -> str:
    try:
        action()
    except (HardwareError, UsageError) as error:
        return str(error)
    return ""


def isolation(folder: Path) -> dict[str, Any]:
    """Losses of the second documents of two rows, with one first document and with another."""
    found: dict[str, Any] = {}
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(256, (2, 2, 32), generator=generator)  # [first or other, B, T]
    tokens[1, :, 11:] = tokens[0, :, 11:]
    labels = tokens[0].roll(-1, 1)
    labels[:, :11] = -100
    positions = torch.cat([torch.arange(11), torch.arange(21)]).expand(2, 32)
    for family in ("gpt2", "llama"):
        for attention in ("sdpa", "flash_attention_2", "varlen"):
            section = Model(family=family, config=CONFIGS[family], attention=attention, dropout=0.0)
            no_ids = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
            config = architecture_config(section, vocabulary=256, special_tokens=no_ids)
            torch.manual_seed(3)
            model = construct(section, config)
            # Weights so large that attention matters.
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.3)
            model.to(torch.bfloat16)
            cuda.USED.clear()
            with torch.no_grad():
                losses = [float(causal_lm_loss(model, one, labels, positions)) for one in tokens]
            found[f"{family} {attention}"] = {"losses": losses, "varlen": cuda.USED["varlen"]}
    return found


def training(folder: Path) -> dict[str, Any]:
    """Every ZeRO stage and precision on GPU 0, offloading, a stop and a resume."""
    corpus = write_corpus(folder)
    found: dict[str, Any] = {}
    for name, (precision, stage, zero, optimizer) in RUNS.items():
        cuda.USED.clear()
        job = _job(_recipe(corpus, precision, stage, zero, optimizer, flash="flash" in name), folder / name)
        outcome = run_local(job, keep_group=True)
        found[name] = _told(job, outcome) | {
            "used": dict(cuda.USED),
            "plan": {row[0]: list(row[1:]) for row in rows(job.plan)},
            "deepspeed": job.plan.deepspeed["zero_optimization"],
        }
    whole = _job(_recipe(corpus, "bf16", 2, {}, {}, dropout=0.1), folder / "whole")
    run_local(whole, keep_group=True)
    parted = _job(_recipe(corpus, "bf16", 2, {}, {}, dropout=0.1), folder / "parted", until=2)
    run_local(parted, keep_group=True)
    run_local(replace(parted, until=None), keep_group=True)
    timed = _recipe(corpus, "bf16", 2, {}, {})
    timed = timed.model_copy(update={"train": timed.train.model_copy(update={"steps": 200, "minutes": 0.01})})
    budget = _job(timed, folder / "budget")
    outcome = run_local(budget, keep_group=True)
    found["budget"] = _told(budget, outcome)
    found["whole"], found["parted"] = _told(whole, ""), _told(parted, "")
    return found | {"afterwards": _afterwards(whole, folder)}


def waits(folder: Path) -> dict[str, dict[int, list[str]]]:
    """Where the host waits for the GPU in each of six steps; evaluation and checkpoint are due at the last."""
    corpus = write_corpus(folder)
    rows = {case: importlib.import_module(f"support.objectives.{case}") for case in ROWS}
    recipes = {
        f"{family} {precision} {stage}": _plain(corpus, family, precision, stage) for family, precision, stage in PLAIN
    }
    for case, module in rows.items():
        (folder / case).mkdir()
        fields = module.recipe_fields(module.write_data(folder / case))
        fields["train"] |= {"steps": 6, "precision": "bf16"}
        sections = {"zero": {"stage": 1}, "checkpoint": {"every": 6}, "schedule": {"name": "constant", "warmup": 1}}
        recipes[case] = parse_recipe({**fields, **sections, "evaluate": {"every": 6, "rows": 8}})
    return {name: _watched(_job(recipe, folder / "waits")) for name, recipe in recipes.items()}


def _plain(corpus: Path, family: str, precision: str, stage: int) -> Recipe:
    return tiny_recipe(
        corpus,
        family=family,
        train={"steps": 6, "precision": precision, "micro_batch": 4},
        schedule={"warmup": 1},
        zero={"stage": stage},
        checkpoint={"every": 6},
        evaluate={"every": 6, "rows": 8},
    )


def _watched(job: Job) -> dict[int, list[str]]:
    """A run whose waits are counted from its first batch on."""
    next_batch, train = Session.next_batch, run.train
    found: dict[int, list[str]] = {}

    def watched(session: Session, **options: Any) -> str:
        with watching() as waits:

            def next_and_mark(session: Session) -> Batch:
                waits.step += 1
                batch = next_batch(session)
                mark_host(batch.micro_batches)
                return batch

            with replaced(Session, "next_batch", next_and_mark):
                outcome = train(session, **options)
        found.update(waits.found)
        return outcome

    with replaced(run, "train", watched):
        run_local(job, keep_group=True)
    return found


def _recipe(
    corpus: Path,
    precision: str,
    stage: int,
    zero: dict[str, Any],
    optimizer: dict[str, Any],
    dropout: float = 0.0,
    flash: bool = False,
) -> Recipe:
    away = {"activation_checkpointing": "full", "offload_activations": True} if zero.get("offload_parameters") else {}
    return tiny_recipe(
        corpus,
        model={"dropout": dropout, "attention": "flash_attention_2" if flash else "sdpa", **away},
        train={"steps": STEPS, "precision": precision, "seed": 7},
        schedule={"name": "cosine", "warmup": 1},
        zero={"stage": stage, **zero},
        optimizer=optimizer,
        checkpoint={"every": 2},
        evaluate={"every": STEPS, "rows": 8},
        sample={"prompts": ["the model "], "max_new_tokens": 2},
    )


def _job(recipe: Recipe, runs: Path, until: int | None = None) -> Job:
    plan = prepare(recipe, world_of(recipe.cluster, local=True))
    text = dump_recipe(recipe)
    folder = RunFolder.create(runs, recipe.name, text, text, world_size=1, total_steps=plan.steps)
    return Job(recipe, plan, folder, until)


def _told(job: Job, outcome: str) -> dict[str, Any]:
    metrics = read_metrics(job.folder.metrics)
    return {
        "outcome": outcome,
        "losses": [line["train/loss"] for line in metrics if "train/loss" in line],
        "names": sorted({name for line in metrics for name in line}),
    }


def _afterwards(job: Job, folder: Path) -> dict[str, Any]:
    trained = load_trained(job.folder)
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "choice.yaml").write_text(TASK.format(path=folder / "questions.jsonl"))
    os.environ |= {"HF_DATASETS_CACHE": str(folder / "cache")}
    return {
        "device": str(trained.device),
        "sample": trained.sample(["the model "], max_new_tokens=3, temperature=0.7, seed=1),
        "evaluation": trained.evaluate(8),
        "tasks": sorted(run_tasks(job.folder.path / "final", [str(folder / "choice.yaml")])),
    }


SCENES = (machine, refusals, isolation, training, waits)

if __name__ == "__main__":
    # Output of libraries must not be part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        answer = {scene.__name__: scene(Path(sys.argv[1])) for scene in SCENES}
    print(json.dumps(answer))  # noqa: T201
