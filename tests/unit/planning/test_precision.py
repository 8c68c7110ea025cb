"""The derived precision: of the devices that train, the same for a whole run, and said."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from shardyard.engine.job import Job
from shardyard.engine.run import slow_bf16
from shardyard.errors import UsageError
from shardyard.hardware import bf16_units, read_cpuinfo
from shardyard.launch.jobs.spec import spec_of
from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.jobs.submit import plan_for
from shardyard.launch.ray.cluster import RayCluster
from shardyard.launch.run import settle, world
from shardyard.launch.run.settle import NodeAnswer, bf16_of_cpu_nodes, bf16_of_gpu_nodes
from shardyard.launch.run.world import bf16_here, bf16_of_gpus, world_of
from shardyard.launch.schedulers.registry import create
from shardyard.planning.architecture import Architecture
from shardyard.planning.placement import ANYWHERE, Amount, Node, Placement, demand_of
from shardyard.planning.plan import World, fixed, make_plan
from shardyard.planning.plan_text import resolved_text, rows
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe, parse_recipe
from shardyard.recipe.precision import GIVEN, Bf16, choose_precision
from shardyard.recipe.rules import rules
from shardyard.recipe.schema import Cluster, Recipe
from shardyard.recipe.shorten import shortened
from shardyard.tracking.run.folder import RunFolder

SMALL = Architecture("gpt2", 1_000_000, 900_000, 200_000, 4, 128, 4, 257, 256)
UNITS, NONE = Bf16(True, "this CPU has bf16 units (AMX)"), Bf16(False, "this CPU has no bf16 units")
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", *AVX2):
        monkeypatch.delenv(name, raising=False)


def recipe_of(**sections: Any) -> Recipe:
    base: dict[str, Any] = {
        "name": "precision",
        "model": {"family": "gpt2"},
        "data": {"sequence_length": 64, "train": [{"source": "python-docs"}]},
        "train": {"global_batch": 8, "steps": 10},
        "optimizer": {"lr": 1e-3},
    }
    return parse_recipe(
        {name: {**base.get(name, {}), **section} for name, section in sections.items()}
        | {name: section for name, section in base.items() if name not in sections}
    )


@pytest.mark.parametrize(
    ("flags", "environment", "units"),
    [
        ("fma avx2", {}, ""),
        ("avx2 avx512f avx512_vnni", {}, ""),
        ("avx2 avx_ne_convert", {}, ""),
        ("avx512f avx512_bf16", {}, "AVX-512"),
        ("avx512_bf16 amx_bf16", {}, "AMX"),
        ("asimd bf16", {}, "Arm"),
        ("avx512_bf16 amx_bf16", AVX2, ""),
        ("avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "avx512_core"}, ""),
        ("avx512_bf16", {"DNNL_MAX_CPU_ISA": "SSE41"}, ""),
        ("avx512_bf16", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, "AVX-512"),
        ("avx512_bf16", {"ATEN_CPU_CAPABILITY": "avx2"}, "AVX-512"),
    ],
)
def test_units_are_read_from_the_flags_and_what_onednn_is_told(
    flags: str, environment: dict[str, str], units: str
) -> None:
    assert bf16_units(f"processor : 0\nflags : {flags}\n", environment) == units
    assert bf16_units("", environment) is None


@pytest.mark.slow
def test_torch_agrees_about_this_cpu() -> None:
    """torch also takes CPUs whose AVX-512 only converts, so what has units must be among its own.

    In processes of their own: torch asks for its variables once, and this one may have been started with some.
    """
    code = (
        "import gc; gc.disable()  # imports take half as long\n"
        "import torch\n"
        "from shardyard.engine.run import bf16_factor\n"
        "from shardyard.hardware import bf16_units, read_cpuinfo\n"
        "torch.set_num_threads(1)\n"
        "print(bool(bf16_units(read_cpuinfo())), torch.ops.mkldnn._is_mkldnn_bf16_supported(), bf16_factor())\n"
    )

    def said(**limits: str) -> list[str]:
        command, environment = [sys.executable, "-c", code], {**os.environ, **limits}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
        return done.stdout.split()

    assert said()[:2] in (["True", "True"], ["False", "True"], ["False", "False"])
    units, supported, factor = said(**AVX2)
    assert (units, supported) == ("False", "False")
    assert float(factor) > 2
    assert "takes 18 times as long as in fp32. Launch with `-s train.precision=fp32`" in slow_bf16(18.2)


@pytest.mark.parametrize(
    ("given", "bf16", "gpu", "precision", "known", "why"),
    [
        (None, UNITS, False, "bf16", True, "this CPU has bf16 units (AMX)"),
        (None, NONE, False, "fp32", True, "this CPU has no bf16 units"),
        (None, Bf16(), False, "fp32", False, "decided when it starts"),
        (None, Bf16(), True, "bf16", False, "GPUs from compute capability 8.0 on"),
        (
            None,
            bf16_of_gpus("this GPU", (9, 0)),
            True,
            "bf16",
            True,
            "this GPU has bf16 units (compute capability 9.0)",
        ),
        (None, bf16_of_gpus("this GPU", (7, 5)), True, "fp32", True, "precision=fp16` is faster"),
        ("bf16", UNITS, False, "bf16", True, GIVEN),
        ("bf16", NONE, False, "bf16", True, "no bf16 units: slow; launch with `-s train.precision=fp32`"),
        ("fp16", NONE, False, "fp16", True, GIVEN),
        ("fp32", Bf16(), True, "fp32", True, GIVEN),
    ],
)
def test_the_precision_and_why(given: Any, bf16: Bf16, gpu: bool, precision: str, known: bool, why: str) -> None:
    chosen = choose_precision(given, bf16, gpu=gpu)
    assert (chosen.precision, chosen.known) == (precision, known)
    assert why in chosen.why


def test_everything_follows_from_the_derived_precision_and_keeps_it() -> None:
    recipe = recipe_of()
    slow = make_plan(recipe, SMALL, World(1, gpu=False, bf16=NONE))
    fast = make_plan(recipe, SMALL, World(1, gpu=False, bf16=UNITS))
    assert (slow.precision, fast.precision) == ("fp32", "bf16")
    assert not slow.deepspeed["bf16"]["enabled"]
    assert fast.deepspeed["bf16"]["enabled"]
    assert slow.memory.parameters_bytes == 2 * fast.memory.parameters_bytes
    assert ("precision", "fp32", "this CPU has no bf16 units") in list(rows(slow))
    # What resumes from resolved.yaml, on whatever machine, has a recipe that gives it.
    again = parse_recipe(YAML(typ="safe", pure=True).load(resolved_text(recipe, slow)))
    assert again == fixed(recipe, slow)
    assert make_plan(again, SMALL, World(1, gpu=False, bf16=UNITS)).precision == "fp32"


def test_it_is_derived_for_the_devices_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "read_cpuinfo", lambda: "flags : avx2\n")
    assert world_of(Cluster()).bf16 == NONE
    assert world_of(Cluster(address="10.0.0.1:6379"), local=True).bf16 == NONE
    for elsewhere in (
        world_of(Cluster(address="10.0.0.1:6379"), cluster_gpus=0),
        world_of(Cluster(), elsewhere=True),
        world_of(Cluster(gpus_per_worker=1)),
    ):
        assert elsewhere.bf16 == Bf16()
    monkeypatch.setattr(world, "read_cpuinfo", lambda: "")
    assert bf16_here(gpu=False) == Bf16(False, "whether this CPU has bf16 units is not known")


def test_a_laptop_that_submits_to_gpus_plans_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "read_cpuinfo", lambda: "flags : avx2\n")
    loaded = load_recipe("gpt/quickstart", ["cluster.gpus_per_worker=1"])
    plan = plan_for(loaded, create("ray"), None)
    assert (plan.precision, plan.precision_known) == ("bf16", False)


def test_a_recipe_is_judged_the_same_on_every_host(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_of(train={"global_batch": 8, "steps": 10, "initial_loss_scale": 12})
    found = rules.check(recipe)
    assert [path for path, _ in found] == [("train", "initial_loss_scale")]
    assert "the derived train.precision, which never is fp16" in found[0][1]
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert rules.check(recipe) == found


def test_nodes_that_differ_agree_on_what_all_of_them_compute() -> None:
    amx, old = NodeAnswer("new", "AMX"), NodeAnswer("old", "")
    assert bf16_of_cpu_nodes([amx, amx]) == Bf16(True, "the CPUs of all nodes have bf16 units (AMX)")
    assert bf16_of_cpu_nodes([amx, old]) == Bf16(False, "the CPU of old has no bf16 units")
    assert bf16_of_cpu_nodes([amx, NodeAnswer("silent")]).why == "whether the CPU of silent has bf16 units is not known"
    assert bf16_of_cpu_nodes([]).units is False
    a100, t4 = NodeAnswer("new", "", (8, 0)), NodeAnswer("old", "", (7, 5))
    assert bf16_of_gpu_nodes([a100, t4]).why == "the oldest GPU, of old, has no bf16 units (compute capability 7.5)"
    assert bf16_of_gpu_nodes([a100, NodeAnswer("amd")]).units is True
    assert bf16_of_gpu_nodes([NodeAnswer("amd")]).units is True


def test_gpus_are_asked_for_their_compute_capability(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(world, "_torch_has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: [(9, 0), (7, 0)][index])
    assert bf16_here(gpu=True) == Bf16(False, "a GPU here has no bf16 units (compute capability 7.0)")
    # On nodes of a cluster without torch: a command of the driver's.
    command = tmp_path / "nvidia-smi"
    for capability, memory, found in (
        ("9.0\n8.6\n", "81559\n24564\n", ((8, 6), 24564 * 2**20)),
        ("[N/A]\n", "[N/A]\n", (None, None)),
    ):
        answers = f"case $1 in *compute_cap) printf '{capability}' ;; *memory.total) printf '{memory}' ;; esac"
        command.write_text(f"#!/bin/sh\n{answers}\n")
        command.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
        told = settle.about_this_node(gpu=True)
        assert (told.gpu, told.device_bytes) == found
    command.unlink()
    told = settle.about_this_node(gpu=True)
    assert (told.gpu, told.device_bytes) == (None, None)
    told = settle.about_this_node(gpu=False)
    assert (told.gpu, told.device_bytes) == (None, None)


class TwoNodes:
    """A cluster as `settle` asks it."""

    def nodes(self) -> list[Node]:
        return [Node(name, Amount(cpus), Amount(0.0)) for name, cpus in (("head", 0.0), ("a", 4.0), ("b", 4.0))]


def test_a_run_asks_the_nodes_of_its_workers_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []

    def answer(nodes: Sequence[str], *, gpu: bool) -> Bf16:
        asked.append(list(nodes))
        return NONE

    monkeypatch.setattr(settle, "bf16_of_nodes", answer)
    recipe = recipe_of()
    plan = make_plan(recipe, SMALL, World(1, gpu=False))
    folder = RunFolder.create(tmp_path, "precision", "", resolved_text(recipe, plan))
    job, cluster, said = Job(recipe, plan, folder), TwoNodes(), []
    demand = demand_of(recipe, gpu=False, workers=1)
    first = settle.settle(job, cluster, demand, Placement((("a", 1),)), said.append)  # type: ignore[arg-type]
    again = settle.settle(job, cluster, demand, Placement((("b", 1),)), said.append)  # type: ignore[arg-type]
    assert asked == [["a"]]
    assert said == ["precision fp32: this CPU has no bf16 units"]
    assert first.recipe.train.precision == again.recipe.train.precision == first.plan.precision == "fp32"
    assert folder.info().plan["precision"] == "fp32"
    assert load_recipe(str(folder.resolved)).recipe.train.precision == "fp32"
    assert "# precision: fp32  (this CPU has no bf16 units)" in folder.resolved.read_text()
    assert settle.settle(first, cluster, demand, ANYWHERE, said.append) is first  # type: ignore[arg-type]
    assert settle.nodes_for(cluster, demand, ANYWHERE) == ["a", "b"]  # type: ignore[arg-type]


def test_a_plan_for_gpus_that_are_not_here_is_checked_where_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row until the memory is known; then what fits, or a refusal."""
    recipe = recipe_of(train={"global_batch": 8, "steps": 10, "precision": "bf16"})
    plan = make_plan(recipe, SMALL, World(1, gpu=True))
    assert (plan.micro_batch, plan.fits) == (1, None)
    assert plan.reasons["micro_batch"].startswith("one row, unchecked")
    verdict = list(rows(plan))[-1][2]
    assert verdict.startswith("unchecked")
    folder = RunFolder.create(tmp_path, "unchecked", "", resolved_text(recipe, plan))
    job, cluster = Job(recipe, plan, folder), TwoNodes()
    demand = demand_of(recipe, gpu=True, workers=1)
    placement = Placement((("a", 1),))

    def settled_with(*memory: int | None) -> tuple[Job, list[str]]:
        said: list[str] = []
        answers = [NodeAnswer("a", "", (9, 0), size) for size in memory]
        monkeypatch.setattr(settle, "ask", lambda nodes, *, gpu: answers)
        return settle.settle(job, cluster, demand, placement, said.append), said  # type: ignore[arg-type]

    checked, said = settled_with(80 * 2**30, 40 * 2**30)
    assert checked.plan.world.device_bytes == 40 * 2**30
    assert (checked.plan.micro_batch, checked.plan.fits) == (8, True)
    assert said == [f"micro-batch 8: {checked.plan.reasons['micro_batch']}"]
    assert "fits 40.0 GiB" in said[0]
    assert folder.info().plan["micro_batch"] == 8
    # A node that does not tell leaves it at one row.
    silent, said = settled_with(80 * 2**30, None)
    assert (silent.plan.micro_batch, silent.plan.fits, said) == (1, None, [])
    with pytest.raises(UsageError, match=r"does not fit 1\.0 MiB"):
        settled_with(2**20)
    # What is known needs no question.
    assert settle.settle(checked, cluster, demand, placement, print) is checked  # type: ignore[arg-type]


def test_an_attempt_goes_on_with_the_steps_that_an_earlier_one_measured(tmp_path: Path) -> None:
    train = {"global_batch": 8, "steps": 100, "minutes": 1.0, "precision": "fp32"}
    recipe = recipe_of(train=train)
    plan = make_plan(recipe, SMALL, World(1, gpu=False))
    folder = RunFolder.create(tmp_path, "budget", "", resolved_text(recipe, plan))
    demand = demand_of(recipe, gpu=False, workers=1)
    job = Job(recipe, plan, folder)
    assert settle.settle(job, TwoNodes(), demand, ANYWHERE, print).plan.steps == 100  # type: ignore[arg-type]
    measured = shortened(recipe, 40, of=100)
    folder.resolved.write_text(resolved_text(measured, make_plan(measured, SMALL, plan.world)))
    again = settle.settle(job, TwoNodes(), demand, ANYWHERE, print)  # type: ignore[arg-type]
    assert (again.plan.steps, again.recipe.train.steps, again.recipe.train.minutes) == (40, 40, None)


def test_a_submitted_job_carries_a_known_precision(tmp_path: Path) -> None:
    recipe = recipe_of()
    loaded = LoadedRecipe(recipe, tmp_path / "r.yaml", "", (), ())
    carried = {}
    for name, bf16 in (("known", NONE), ("unknown", Bf16())):
        plan = make_plan(recipe, SMALL, World(1, gpu=False, bf16=bf16))
        spec = spec_of(SubmitRequest("r", (), loaded, plan, tmp_path, "r", resolved=resolved_text(recipe, plan)))
        carried[name] = (spec["recipe"]["train"]["precision"], spec["plan"]["precision"])
    assert carried == {"known": ("fp32", "fp32"), "unknown": (None, "fp32")}


@pytest.mark.slow
@pytest.mark.cluster
def test_a_node_is_asked_through_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        (node,) = [node.id for node in RayCluster(None).nodes()]
        monkeypatch.setattr(settle, "ASK_SECONDS", 120.0)
        (answer,) = settle.ask([node], gpu=True)
        monkeypatch.setattr(settle, "ASK_SECONDS", 1.0)
        assert answer.cpu == bf16_units(read_cpuinfo())
        gone = settle.ask(["ab" * 28], gpu=False)
        assert [(one.host, one.cpu) for one in gone] == [("node abababab", None)]
    finally:
        ray.shutdown()
