"""`make gpu-check` without a GPU: it says so; its script is rehearsed on the CPU, also where little is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.rehearsal import H100

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[1] / "gpu_check" / "run.py"
BARE = ["device", "losses", "attention", "varlen", "tensors"]
WITH_TRANSFORMERS = ["optimizers", "step-124m", "step-350m", "step-1.5b"]
# Packages of Shardyard that a machine lent for a check lacks.
ABSENT = ("ray", "deepspeed", "datasets", "wandb", "peft", "accelerate", "rich", "typer", "psutil", "pynvml", "PIL")
HIDE = """
import importlib.machinery
_find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {hidden!r} else _find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
"""


def check(*arguments: str, without: tuple[str, ...] = (), folder: Path | None = None) -> tuple[int, str, str]:
    """Exit code, output and errors."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    if without:
        assert folder is not None
        (folder / "sitecustomize.py").write_text(HIDE.format(hidden=set(without)))
        environment["PYTHONPATH"] = str(folder)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def parts_of(output: str) -> dict[str, dict[str, Any]]:
    return {part["name"]: part for part in json.loads(output.splitlines()[-1])["parts"]}


def named(names: list[str]) -> list[str]:
    return [word for name in names for word in ("--part", name)]


def test_without_a_gpu_it_says_so_and_checks_nothing() -> None:
    code, output, errors = check("--part", "device")
    assert (code, output) == (2, "")
    assert "torch sees no GPU here, so nothing was checked" in errors
    assert "--pretend" in errors


def test_parts_are_listed_with_what_they_need_and_what_is_missing(tmp_path: Path) -> None:
    code, output, _ = check("--list", without=("ray", "deepspeed"), folder=tmp_path)
    assert code == 0
    lines = {line.split()[0]: line for line in output.splitlines()}
    whole = {
        "watch",
        "doctor",
        "zero-bf16",
        "resume",
        "saving",
        "liger",
        "ray",
        "waits",
        "memory",
        "speed-1.3b",
        "tensor",
    }
    assert set(BARE + WITH_TRANSFORMERS) | whole <= set(lines)
    assert "[not here: ray, deepspeed]" in lines["ray"]
    assert "not here" not in lines["attention"]


def test_a_bare_machine_runs_what_needs_torch_and_transformers_alone(tmp_path: Path) -> None:
    arguments = ["--rehearse", "--json", "--here", *named([*BARE, *WITH_TRANSFORMERS, "watch", "ray"])]
    code, output, errors = check(*arguments, without=ABSENT, folder=tmp_path)
    found = parts_of(output)
    assert {name: found[name]["state"] for name in BARE + WITH_TRANSFORMERS} == dict.fromkeys(
        BARE + WITH_TRANSFORMERS, "passed"
    ), errors[-4000:]
    assert code == 0
    assert found["step-124m"]["figures"]["tokens_per_second"] > 0
    assert found["attention"]["figures"]["fp32_relative_error"] < 1e-5
    # What could not be run is never counted as passed.
    assert (found["watch"]["state"], found["ray"]["state"]) == ("not run", "not run")
    assert found["watch"]["message"] == "needs psutil, not installed here"
    assert "ray, deepspeed" in found["ray"]["message"]


def test_parts_take_the_branches_of_a_gpu_on_pretended_ones() -> None:
    """A sample; `make gpu-check PRETEND=2` runs all of them."""
    code, output, errors = check("--pretend", "2", "--json", *named(["device", "watch", "waits", "liger"]))
    found = parts_of(output)
    assert code == 0, f"{output}\n{errors[-4000:]}"
    assert (found["device"]["figures"]["name"], found["device"]["figures"]["peak_TFLOPs"]) == (H100, 989.4)
    assert found["watch"]["figures"]["gpu.1.powerWatts"] == 250.0
    # DeepSpeed's own waits: docs/benchmarks.md.
    assert found["waits"]["figures"]["stage_1_waits_a_step"] > 0
    assert json.loads(output.splitlines()[-1])["gpus"] == [H100, H100]


def test_a_part_for_which_no_time_is_left_is_not_run() -> None:
    code, output, _ = check("--rehearse", "--minutes", "0.1", "--part", "losses")
    assert code == 2
    assert "the 0.1 minutes are over" in output


def test_a_part_for_several_gpus_says_what_is_here() -> None:
    code, output, _ = check("--pretend", "1", "--json", *named(["tensor"]))
    assert code == 2
    assert parts_of(output)["tensor"]["message"] == "needs 2 GPUs, and here is 1"


def test_nothing_that_could_run_is_no_success(tmp_path: Path) -> None:
    code, output, _ = check("--rehearse", "--part", "step-124m", without=("transformers",), folder=tmp_path)
    assert code == 2
    assert "not run  step-124m" in output
    assert "needs transformers, not installed here" in output
    assert "1 not run" in output


def test_a_part_that_trains_passes_in_rehearsal() -> None:
    """In a process of its own, as `make gpu-check` runs each part."""
    code, output, errors = check("--rehearse", "--json", *named(["zero-bf16"]))
    found = parts_of(output)
    assert code == 0, f"{output}\n{errors[-6000:]}"
    assert [part["state"] for part in found.values()] == ["passed"]
    assert 0 < found["zero-bf16"]["figures"]["stage_2_last_loss"] < 6


def test_a_failure_ends_with_1_and_says_what_was_measured(tmp_path: Path) -> None:
    broken = (
        HIDE + "import torch\ntorch.nn.functional.scaled_dot_product_attention = lambda q, k, v, is_causal: q + k + v\n"
    )
    (tmp_path / "sitecustomize.py").write_text(broken.format(hidden=set()))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--rehearse", "--here", "--part", "attention"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 1
    assert "in bf16 attention or its gradients are" in done.stdout
    assert "1 failed" in done.stdout
