"""Where a run comes from, without secrets; names of metrics; meters."""

import json
import subprocess
from pathlib import Path

import pytest

from shardyard.redaction import HIDDEN, hide_secrets, is_secret_name
from shardyard.tracking.metrics.meters import Throughput, memory_metrics, peak_flops
from shardyard.tracking.metrics.record import StepRecord, eval_loss, newest_eval_loss
from shardyard.tracking.run.provenance import collect, git_state


def test_provenance_names_code_packages_and_machine(tmp_path: Path) -> None:
    found = collect(["shardyard", "launch", "x.yaml"], folder=tmp_path)
    assert found["packages"]["torch"].startswith("2.")
    assert {"python", "host", "cpu", "cpus", "gpus"} <= found.keys()
    assert "git" not in found
    assert found["command"] == ["shardyard", "launch", "x.yaml"]
    json.dumps(found)


def test_git_state_has_commit_and_dirt(tmp_path: Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    state = git_state(tmp_path)
    assert state is not None
    assert len(state["commit"]) == 40
    assert state["dirty"] is False
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {**state, "dirty": True}


def test_secrets_never_reach_the_command(tmp_path: Path) -> None:
    environment = {"WANDB_API_KEY": "w" * 40, "HF_TOKEN": "hf_" + "t" * 30, "HOME": "/home/somebody"}
    arguments = [
        "launch", "-s", "tracking.note=" + "w" * 40, "--api-key", "first-secret", "--password=second-secret", "x.yaml",
        "HF_TOKEN=third-secret", "hf_" + "u" * 30, "https://user:fourth-secret@host/path", "--max-tokens", "100",
        "tokenizer.eos_token=</s>", "/home/somebody/x", "--token=a=b=fifth-secret",
    ]  # fmt: skip
    shown = json.dumps(collect(arguments, folder=tmp_path, environment=environment))
    for secret in ("w" * 40, "hf_", "first-", "second-", "third-", "fourth-", "fifth-"):
        assert secret not in shown
    assert hide_secrets(["--api-key", "s", "x.yaml"], {}) == ["--api-key", HIDDEN, "x.yaml"]
    for kept in ("--max-tokens", "100", "tokenizer.eos_token=</s>", "/home/somebody/x", "https://[hidden]@host/path"):
        assert kept in json.loads(shown)["command"]


@pytest.mark.parametrize(
    ("name", "secret"),
    [("WANDB_API_KEY", True), ("HF_TOKEN", True), ("--token", True), ("AWS_SECRET_ACCESS_KEY", True),
     ("monkey", False), ("train.tokens", False), ("pad_token", False), ("KEYBOARD", False), ("tokenizer", False)],
)  # fmt: skip
def test_what_counts_as_a_secret(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_a_record_is_a_line_with_step_and_time_first() -> None:
    line = StepRecord(3, {"train/loss": 1.0}, time=5.0).as_line()
    assert list(line.items()) == [("step", 3), ("time", 5.0), ("train/loss", 1.0)]
    assert newest_eval_loss({eval_loss("books"): 2.0}) == 2.0
    assert newest_eval_loss({eval_loss("books"): 2.0, eval_loss(): 3.0}) == 3.0
    assert newest_eval_loss(line) is None


@pytest.mark.parametrize(
    ("name", "precision", "tera"),
    [("NVIDIA A100-SXM4-80GB", "bf16", 312), ("NVIDIA A100-PCIE-40GB", "bf16", 312),
     ("NVIDIA A100 80GB PCIe", "fp16", 312), ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
     ("NVIDIA H100 PCIe", "bf16", 756), ("NVIDIA H200", "fp16", 989.4),
     ("NVIDIA B200", "bf16", 2250), ("NVIDIA L40S", "bf16", 362), ("NVIDIA L4", "fp32", 30.3), ("Tesla T4", "fp16", 65),
     ("Tesla V100-SXM2-16GB", "fp16", 125), ("NVIDIA A10", "bf16", 125), ("NVIDIA A10G", "bf16", 70),
     ("NVIDIA GeForce RTX 4090", "bf16", 165.2), ("AMD Instinct MI300X", "bf16", 1307.4)],
)  # fmt: skip
def test_peaks_of_known_accelerators(name: str, precision: str, tera: float) -> None:
    assert peak_flops(name, precision) == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("cpu", "bf16"), ("AMD EPYC 9454", "fp32"), ("Tesla T4", "bf16"), ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16"),
     ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"), ("NVIDIA H20", "bf16"), ("NVIDIA A100X", "bf16"), ("", "fp32")],
)  # fmt: skip
def test_unknown_hardware_has_no_peak_and_so_no_mfu(name: str, precision: str) -> None:
    peak = peak_flops(name, precision)
    assert peak is None
    assert "perf/mfu" not in Throughput(flops_per_token=1e9, peak_flops=peak).update(1000, 0.1)


def test_throughput_is_tokens_over_the_time_of_the_last_steps() -> None:
    meter = Throughput(window_steps=2, flops_per_token=1e6, peak_flops=1e10)
    meter.update(1000, 50.0)  # the first step compiles; the window forgets it
    meter.update(1000, 1.0)
    metrics = meter.update(1000, 3.0, data_wait_seconds=0.5)
    assert metrics["perf/tokens_per_second"] == pytest.approx(500.0)
    assert metrics["perf/mfu"] == pytest.approx(0.05)
    assert (metrics["perf/step_seconds"], metrics["perf/data_wait_seconds"]) == (3.0, 0.5)


def test_memory_follows_what_is_held() -> None:
    before = memory_metrics()["memory/rss_bytes"]
    held = bytearray(b"x" * 64_000_000)
    assert memory_metrics()["memory/rss_bytes"] - before > 50_000_000
    del held
