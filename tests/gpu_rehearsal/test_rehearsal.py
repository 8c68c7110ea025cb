"""Every branch that only a GPU reaches, run where there is none: see `support/rehearsal`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.cli import Command, write_recipe
from support.rehearsal import H100, environment, lines_run
from support.rehearsal.asked import lines_that_ask
from support.tiny import write_corpus

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support" / "rehearsal"
SHORT: dict[str, Any] = {
    "train": {"steps": 6, "precision": "bf16"},
    "schedule": {"name": "cosine", "warmup": 2},
    "checkpoint": {"every": 3},
    "evaluate": {"every": 3, "rows": 8},
}
# Decisions about GPUs that are pure are tried in all their cases by tests of their own, which need no GPU either.
DECISIONS = ["launch/schedulers/test_slurm_script", "launch/schedulers/test_kuberay_render", "launch/test_nodes"]
DECISIONS += ["launch/test_host", "planning/test_placement", "planning/test_plan", "planning/test_precision"]
DECISIONS += ["recipe/test_rules_cluster", "launch/schedulers/test_ray_nodes"]
DECISIONS += ["engine/steps/test_profiling"]

# File and text of each line about GPUs that the rehearsal does not run → why not.
_KERNELS = "the kernels of bitsandbytes take a real GPU; tests/unit/models has their CPU results"
_PROFILER = "the profiler of CUDA takes a real GPU; tests/e2e/data/test_slow_source.py profiles CPUs"
_COPIES = "tensors that autograd stores are in host memory here; tests/unit/models/test_checkpointing.py has the modes"
_PURE = "a plan for GPUs that are not here, which needs none: tests/unit/planning and tests/unit/cli"
_SNAPSHOT = "tensors are in host memory here; tests/unit/engine/test_snapshot.py has the copies"
_OUTSIDE = "texts of a custom module; tests/unit/models/test_outside.py makes them"
_RECORDER = "the record of a real NCCL; tests/unit/tracking/watch reads one"
_SLURM = "a real Slurm, whose partition claims GPUs: tests/e2e/test_slurm.py"
_SKIPPED = "numbers of a simulated GPU come from the CPU: tests/distributed/test_anomalies.py skips batches there"
EXCEPTIONS = {
    ("cli/commands/plan.py", "if gpu is None:"): _PURE,
    ("cli/commands/plan.py", "_refuse_without_gpu(gpus=gpus, per_node=per_node, network=network, price=price)"): _PURE,
    ("cli/commands/plan.py", 'workers = [] if gpus is None else [f"cluster.workers={gpus}"]'): _PURE,
    (
        "cli/commands/plan.py",
        "named = [f\"--{name.replace('_', '-')}\" for name, value in given.items() if value is not None]",
    ): _PURE,
    ("cli/view/plan_search.py", 'one_each = [f"cluster.workers={hardware.gpus}", "cluster.gpus_per_worker=1"]'): _PURE,
    ("engine/checkpoint/snapshot.py", "if on_gpu:"): _SNAPSHOT,
    ("engine/checkpoint/snapshot.py", "torch.cuda.synchronize()"): _SNAPSHOT,
    (
        "engine/checkpoint/snapshot.py",
        'cast("Any", torch.cuda).cudart().cudaHostUnregister(self._bytes.data_ptr())',
    ): _SNAPSHOT,
    (
        "engine/checkpoint/snapshot.py",
        'return int(cast("Any", torch.cuda).cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)) == 0',
    ): _SNAPSHOT,
    ("models/outside.py", "while _any_goes_on(left > 0, input_ids.device, synced_gpus):"): _OUTSIDE,
    (
        "models/outside.py",
        "logits = self(**self._step_inputs(source, input_ids)).logits[:, -1].float()  # [1, V]",
    ): _OUTSIDE,
    ("planning/forecast/forecast.py", "return self.tokens_per_second / self.hardware.gpus"): _PURE,
    ("planning/forecast/hardware.py", "if gpus < 1:"): _PURE,
    ("planning/forecast/hardware.py", 'raise UsageError(f"--gpus {gpus}: at least one is needed.")'): _PURE,
    ("planning/forecast/hardware.py", "if gpus > each and gpus % each:"): _PURE,
    (
        "planning/forecast/hardware.py",
        'fitting = ", ".join(str(number) for number in range(each, 0, -1) if gpus % number == 0)',
    ): _PURE,
    ("planning/forecast/hardware.py", "if gpus > each and network is None:"): _PURE,
    ("planning/forecast/hardware.py", "raise UsageError("): _PURE,
    ("planning/host_memory.py", "each += copy_bytes(recipe, memory) - (memory.optimizer_bytes if gpu else 0)"): _PURE,
    ("planning/saving.py", 'where = "pinned host memory" if gpu else "memory"'): _PURE,
    (
        "engine/anomalies/guard.py",
        'cuda = torch.cuda.get_rng_state(self._mesh.device) if self._mesh.device.type == "cuda" else None',
    ): _SKIPPED,
    ("engine/anomalies/guard.py", "if cuda is not None:"): _SKIPPED,
    ("engine/anomalies/guard.py", "torch.cuda.set_rng_state(cuda, self._mesh.device)"): _SKIPPED,
    ("planning/search/search.py", "while (gpus := 2 * gpus) <= most:"): _PURE,
    ("planning/search/search.py", "found = least([way for way in ways(plain, gpus) if way.fits])"): _PURE,
    ("models/checkpointing.py", "stream.wait_stream(torch.cuda.current_stream(tensor.device))"): _COPIES,
    ("models/checkpointing.py", "with torch.cuda.stream(stream):"): _COPIES,
    ("models/checkpointing.py", "torch.cuda.current_stream(device).wait_event(copied)"): _COPIES,
    ("models/checkpointing.py", "return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]"): _COPIES,
    ("models/document_attention.py", "back = -1 if sliding_window is None else sliding_window - 1"): (
        "torch's kernel takes a real GPU: tests/unit/models/test_document_attention.py has the call"
    ),
    ("models/adapters/nf4.py", "if codes.is_cuda and _HAS_KERNELS:"): _KERNELS,
    ("models/adapters/nf4.py", "return dequantize_by_kernel(codes, scales, shape)"): _KERNELS,
    ("engine/profiling/profiler.py", 'if self._mesh.device.type == "cuda":'): _PROFILER,
    ("engine/profiling/profiler.py", "activities.append(torch.profiler.ProfilerActivity.CUDA)"): _PROFILER,
    ("engine/__init__.py", 'os.environ["DS_ACCELERATOR"] = "cpu"'): "what happens where there is no GPU",
    ("launch/local_cluster/start.py", "gpus = None if plan.gpus is None else len(plan.gpus)"): (
        "starting nodes takes Ray's own processes: tests/e2e/test_cluster_up.py"
    ),
    (
        "launch/schedulers/slurm/jobs.py",
        'spec["version"] = ""  # so that the job plans again on a host with the GPUs',
    ): _SLURM,
    ("launch/schedulers/slurm/jobs.py", "if allocation.gpus_per_node:"): _SLURM,
    (
        "launch/schedulers/slurm/jobs.py",
        "each += f\" and {allocation.gpus_per_node} GPU{'s' if allocation.gpus_per_node > 1 else ''}\"",
    ): _SLURM,
    ("launch/schedulers/slurm/jobs.py", "return recipe.cluster.gpus_per_worker > 0"): _SLURM,
    ("tracking/watch/report.py", 'if (name := str(entry.get("profiling_name"))).startswith("nccl:"):'): _RECORDER,
    ("tracking/watch/report.py", "return f\"{name} #{entry.get('collective_seq_id')}\""): _RECORDER,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rehearsal")


@pytest.fixture(scope="module")
def lines(folder: Path) -> Path:
    return folder / "lines"


def script(name: str, *arguments: object, **variables: str) -> dict[str, Any]:
    """The last line that a script of `support/rehearsal` prints."""
    path = f"{ROOT / 'tests'}{os.pathsep}{variables.pop('PYTHONPATH')}"
    done = subprocess.run(
        [sys.executable, str(SUPPORT / name), *map(str, arguments)],
        env={**os.environ, **variables, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def scenes(folder: Path, lines: Path) -> dict[str, Any]:
    return script("scenes.py", folder, **environment(2, lines))


@pytest.fixture(scope="module")
def recipe(folder: Path) -> Path:
    return write_recipe(folder, write_corpus(folder), cluster={"workers": 2, "max_failures": 3}, **SHORT)


@pytest.fixture(scope="module")
def launched(recipe: Path, folder: Path, lines: Path) -> tuple[Command, str]:
    """A run of two ranks on two GPUs through Ray."""
    with Command("launch", recipe, runs=folder / "runs", **environment(2, lines)) as command:
        code, output = command.finish()
    assert code == 0, output + (command.folder / "logs" / "rank-0.log").read_text()[-4000:]
    return command, output


@pytest.fixture(scope="module")
def sixteen(lines: Path) -> dict[str, Any]:
    return script("nodes.py", **environment(8, lines), RAY_prestart_worker_first_driver="0")


@pytest.fixture(scope="module")
def doctor(folder: Path, lines: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "shardyard.cli.main", "doctor"],
        env={**os.environ, **environment(2, lines), "COLUMNS": "400"},
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        timeout=300,
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def decisions(lines: Path) -> None:
    files = [str(ROOT / "tests" / "unit" / f"{name}.py") for name in DECISIONS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *files],
        env={**os.environ, **environment(0, lines)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_two_ranks_meet_over_nccl_each_on_its_gpu(launched: tuple[Command, str]) -> None:
    """It ended before its ranks met: `ray.train.torch` is not there after `from ray import train`."""
    command, output = launched
    info = command.info()
    assert (info["state"], info["attempts"]) == ("finished", 1), output
    (place,) = info["placement"]
    assert sorted(map(tuple, place["gpus"])) == [("0",), ("1",)]
    (settings,) = info["network"].values()
    assert any(words.startswith("NCCL_SOCKET_IFNAME=") for words in settings)
    begins = [(command.folder / "logs" / f"rank-{rank}.log").read_text() for rank in range(2)]
    devices = [line.rpartition(", ")[2] for log in begins for line in log.splitlines() if ": begins on" in line]
    assert sorted(devices) == ["cuda:0", "cuda:1"]


def test_what_a_run_on_gpus_records(launched: tuple[Command, str]) -> None:
    metrics = launched[0].metrics()
    assert [line["step"] for line in metrics if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert 0 < metrics[-1]["perf/mfu"] < 1e-3
    assert metrics[-1]["memory/peak_allocated_bytes"] > 0
    told = launched[0].info()["predicted"]
    assert told["gpu"] == "h100-80gb"
    assert told["device_bytes"] > 0
    assert told["tokens_per_second"] > 0


def test_a_bug_before_the_first_step_ends_a_launch_at_once(recipe: Path, folder: Path, lines: Path) -> None:
    """It was tried again as often as a broken network is."""
    missing = {"REHEARSAL_WITHOUT": "torch.set_num_threads"}
    with Command("launch", recipe, runs=folder / "bug", **environment(2, lines), **missing) as command:
        code, output = command.finish()
    assert code == 1, output
    assert command.info()["attempts"] == 1
    assert "AttributeError: module 'torch' has no attribute 'set_num_threads'" in output, output + command.driver_log()
    assert f"on {socket.gethostname()}, before the first step" in output
    assert "training failed, and it would fail again" in output


def test_sixteen_ranks_fill_two_nodes_of_eight(sixteen: dict[str, Any]) -> None:
    assert sixteen["gpus"] == 16
    assert sixteen["nodes"] == 2
    assert sixteen["counts"] == [8, 8]
    assert sixteen["as told"]
    assert sixteen["bundle"] == {"CPU": 1.0, "GPU": 1.0}
    assert "needs 16 GPUs" in sixteen["sentence"]
    assert "17 GPUs" in sixteen["refused"]
    # Each node is asked what its GPUs compute.
    assert sixteen["bf16"][0] is True
    assert "compute capability 9.0" in sixteen["bf16"][1]


def test_doctor_names_the_gpus_and_what_they_compute(doctor: str) -> None:
    for words in (
        f"2 × {H100}",
        "CUDA 13.0 build",
        "gloo, nccl",
        "fp32, bf16, fp16 (compute capability 9.0)",
        "on cuda",
    ):
        assert words in doctor, doctor


def test_the_machine_watch_samples_each_gpu(scenes: dict[str, Any]) -> None:
    machine = scenes["machine"]
    assert machine["driver"] == machine["torch"] == [H100, H100]
    assert machine["world"] == [True, 80 * 1024**3]
    assert machine["peak"] == 989.4e12
    assert machine["sample"]["system/here/gpu.0.powerWatts"] == 250.0
    # This driver tells no temperature, and the rest all the same.
    assert {name.rpartition(".")[2] for name in machine["sample"]} == {
        *("utilizationPercent", "memoryUsedBytes", "powerWatts"),
    }


def test_gpus_that_cannot_be_used_are_told(scenes: dict[str, Any]) -> None:
    found = scenes["refusals"]
    assert "has no bf16; use train.precision fp16 or fp32" in found["old"]
    assert "torch 2" in found["hidden"]
    assert "no GPU that torch can use" in found["local"]
    assert "DS_ACCELERATOR is cpu there" in found["unwanted"]
    assert "model.kernels: liger needs liger_kernel, triton" in found["kernels"]
    assert "liger_kernel" in found["kernels"]
    assert found["gloo only"] == "GPUs communicate over NCCL: install a torch build with it."
    assert (found["memory"], found["on the CPU"], found["none"]) == ("None", "False", "")


def test_every_stage_and_precision_trains_on_a_gpu(scenes: dict[str, Any]) -> None:
    runs = scenes["training"]
    cases = ["fp32-0", "bf16-1", "bf16-2", "bf16-2-lion", "bf16-1-flash", "fp16-3", "bf16-3-offload"]
    assert [runs[case]["outcome"] for case in cases] == ["finished"] * len(cases)
    for case in cases:
        assert runs[case]["losses"][0] == pytest.approx(5.5527, abs=2e-3), case
        assert runs[case]["losses"][-1] < 5.5, case
        assert {"perf/mfu", "memory/peak_allocated_bytes"} <= set(runs[case]["names"]), case
    assert runs["bf16-1"]["losses"] == runs["bf16-2"]["losses"]
    assert runs["bf16-1-flash"]["used"]["varlen"] > 0
    assert runs["bf16-1-flash"]["losses"] == pytest.approx(runs["bf16-1"]["losses"], abs=2e-2)
    assert "train/loss_scale" in runs["fp16-3"]["names"]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_documents_of_a_row_do_not_see_each_other_with_flash_attention(scenes: dict[str, Any], family: str) -> None:
    """transformers keeps them apart in a batch of one row only; those of more rows attended to each other."""
    plain, flash = (scenes["isolation"][f"{family} {attention}"] for attention in ("sdpa", "flash_attention_2"))
    assert plain["losses"][0] == plain["losses"][1]
    assert (plain["varlen"], flash["varlen"] > 0) == (0, True)
    assert flash["losses"][0] == flash["losses"][1]
    assert flash["losses"][0] == pytest.approx(plain["losses"][0], rel=1e-2)


def test_communication_overlaps_on_streams_and_offloading_pins_memory(scenes: dict[str, Any]) -> None:
    runs = scenes["training"]
    assert runs["bf16-2"]["deepspeed"]["overlap_comm"] is True
    assert runs["bf16-2"]["used"]["on a stream"] > 0
    offload = runs["bf16-3-offload"]
    assert offload["deepspeed"]["offload_optimizer"] == {"device": "cpu", "pin_memory": True}
    assert offload["used"]["pinned copies"] > 0
    assert offload["used"]["on a stream"] > 0
    plan = offload["plan"]
    assert plan["world size"][1] == "GPUs"
    assert plan["memory a rank"][-1] == "fits 80.0 GiB"


def test_a_resumed_run_on_a_gpu_is_bitwise_the_same(scenes: dict[str, Any]) -> None:
    """With dropout, so the random state of the GPU has to come back too."""
    runs = scenes["training"]
    assert runs["parted"]["losses"] == runs["whole"]["losses"]
    assert len(runs["whole"]["losses"]) == 4


def test_a_time_budget_is_measured_on_the_gpu(scenes: dict[str, Any]) -> None:
    """The engine that was timed gives its memory back first."""
    budget = scenes["training"]["budget"]
    assert budget["outcome"] == "finished"
    assert 1 <= len(budget["losses"]) < 200


def test_a_trained_model_is_sampled_and_measured_on_the_gpu(scenes: dict[str, Any]) -> None:
    after = scenes["training"]["afterwards"]
    assert after["device"] == "cuda"
    assert len(after["sample"]) == 1
    assert after["tasks"] == ["choice"]


# What DeepSpeed 0.19.8 waits for in an update, by ZeRO stage: docs/benchmarks.md.
_UTILS = "deepspeed/runtime/utils.py"
_CLIP, _INVALID = f"{_UTILS}:clip_tensors_by_global_norm", f"{_UTILS}:is_invalid_grad_norm"
_MASKED = f"{_UTILS}:mask_nan_or_inf_with_val_inplace"
OF_DEEPSPEED = {
    "fp32 0": [f"{_UTILS}:clip_grad_norm_"] * 2,
    "bf16 1": [_CLIP, _INVALID, _MASKED],
    "bf16 2": [_INVALID] * 3 + [_MASKED] * 2 + ["deepspeed/runtime/zero/stage_1_and_2.py:has_overflow"],
    "bf16 3": [_INVALID] + ["deepspeed/runtime/zero/stage3.py:get_grad_norm_direct"] * 2,
}
OBJECTIVES = ["text_classification", "preference", "distillation"]


@pytest.mark.parametrize("case", ["gpt2 fp32 0", "gpt2 bf16 1", "llama bf16 2", "mixtral bf16 3", *OBJECTIVES])
def test_a_step_waits_for_the_gpu_only_within_deepspeed(scenes: dict[str, Any], case: str) -> None:
    """Every step is recorded, but its numbers are read when the next one is under way."""
    found = {int(step): places for step, places in scenes["waits"][case].items()}
    expected = OF_DEEPSPEED[" ".join(case.split()[1:]) or "bf16 1"]
    for step in (3, 4, 5):
        places = sorted(place.partition(" in ")[2] for place in found[step])
        assert places == sorted([*expected, "shardyard/engine/transfer.py:read"]), found[step]
        # The result of the step before, once this one has been given to the GPU.
        assert "event in shardyard/engine/transfer.py:read" in found[step]
    # An evaluation, a checkpoint and the export are due. The checkpoint takes each weight and each state to the host.
    saved = [
        place for place in found[6] if place == "copy to the host in shardyard/engine/checkpoint/rank_file.py:buffers"
    ]
    assert saved
    assert len(expected) + 1 < len(found[6]) - len(saved) < 120


@pytest.mark.usefixtures("scenes", "launched", "sixteen", "doctor", "decisions")
def test_no_line_that_asks_for_a_gpu_stays_unrun(lines: Path) -> None:
    asked, run = lines_that_ask(ROOT / "platform" / "shardyard"), lines_run(lines)
    assert sum(map(len, asked.values())) > 100
    assert {"launch/ray/process_group.py", "engine/checkpoint/random_states.py", "tracking/metrics/meters.py"} <= set(
        asked
    )
    unrun = {
        (name, text): number
        for name, numbers in asked.items()
        for number, text in numbers.items()
        if number not in run.get(name, set())
    }
    left = {f"{name}:{number}: {text}" for (name, text), number in unrun.items() if (name, text) not in EXCEPTIONS}
    assert not left, "lines about GPUs that nothing runs:\n" + "\n".join(sorted(left))
    stale = set(EXCEPTIONS) - {(name, text) for name, numbers in asked.items() for text in numbers.values()}
    assert not stale, "exceptions that stand for no line"
