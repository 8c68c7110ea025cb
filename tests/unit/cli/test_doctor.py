"""The doctor names what is wrong and what to do; only what a CPU run needs makes it fail."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from shardyard.cli.doctor import checks, probe
from shardyard.cli.main import run as shardyard

HEALTHY: dict[str, Any] = {
    "torch": "2.13.0", "cuda": None, "hip": None, "gloo": True, "nccl": False, "gpus": [], "capability": None,
    "gpu_bf16": False, "deepspeed": "0.19.8", "accelerator": "cpu", "fp16": False,
    "ops": {"cpu_adam": True, "async_io": False},
}  # fmt: skip


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_ADDRESS", "WANDB_API_KEY", "WANDB_MODE", "HF_ENDPOINT", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("SHARDYARD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))


def _closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.slow
def test_this_machine_is_ready_and_a_hidden_compiler_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shardyard(["doctor"]) == 0
    shown = capsys.readouterr().out.splitlines()
    [line] = [line for line in shown if " compilers " in line]
    assert line.startswith("warn")
    assert "no g++" in line
    assert "apt-get install g++" in shown[shown.index(line) + 1]
    assert any(line.startswith("ok       DeepSpeed") for line in shown)
    assert shown[-1].startswith("Ready to train; ")


def test_what_a_cpu_run_needs_makes_it_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checks, "probe_torch", lambda: HEALTHY)
    monkeypatch.setenv("SHARDYARD_RUNS", "/proc/runs")
    assert shardyard(["doctor", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["broken"] == ["runs folder"]
    assert report["ready"] is False
    assert shardyard(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("Not ready: runs folder")


def test_a_broken_torch_is_a_finding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is gone')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = probe.probe_torch()
    check = probe.check_torch(found)
    assert (check.status, check.needed) == ("missing", True)
    assert "libtorch.so is gone" in check.detail
    (tmp_path / "torch.py").write_text("import os, sys; print('Illegal instruction', file=sys.stderr); os.abort()")
    found = probe.probe_torch()
    assert "Illegal instruction" in probe.check_torch(found).detail
    assert probe.check_deepspeed(found).status == "missing"


def test_a_python_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import time; time.sleep(60)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.5)
    assert "timed out" in probe.probe_torch()["torch_error"]


def test_versions_outside_of_the_tested_range_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["torch==2.13.0", "transformers>=5.19,<5.20", "no-such-package>=1", "mypy>=1; extra == 'check'"]
    monkeypatch.setattr(checks.metadata, "requires", lambda _: wanted)
    found = {check.name: check for check in checks.check_packages()}
    assert found["transformers"].status == "warn"
    assert "tested range <5.20,>=5.19" in found["transformers"].detail
    assert (found["no-such-package"].status, found["no-such-package"].needed) == ("missing", True)
    assert "torch 2.13.0" in found["packages"].detail
    assert "mypy" not in found


def test_gpus_are_counted_and_hidden_ones_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "gpu_names", lambda: ["NVIDIA L4"] * 2)
    assert probe.check_gpus({**HEALTHY, "gpus": ["NVIDIA L4"] * 2}).detail == "2 × NVIDIA L4"
    assert "CUDA build" in probe.check_gpus(HEALTHY).advice
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "unset it" in probe.check_gpus(HEALTHY).advice
    with_gpu = {**HEALTHY, "gpus": ["Tesla T4"], "capability": [7, 5]}
    assert probe.check_collectives(with_gpu).status == "warn"
    assert "fp16" in probe.check_gpu_precision(with_gpu).advice
    assert "bf16, fp16" in probe.check_gpu_precision({**with_gpu, "gpu_bf16": True}).detail


def test_a_torch_without_gloo_cannot_train() -> None:
    check = probe.check_collectives({**HEALTHY, "gloo": False})
    assert (check.status, check.needed) == ("missing", True)


@pytest.mark.parametrize(("flags", "status"), [("amx_bf16 sse", "ok"), ("sse", "warn")])
def test_a_cpu_without_bf16_units_is_told(monkeypatch: pytest.MonkeyPatch, flags: str, status: str) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(probe, "read_cpuinfo", lambda: f"flags : {flags}\n")
    assert probe.check_cpu_precision(HEALTHY).status == status


def test_a_ray_cluster_is_found_or_missed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert "a launch starts a local one" in checks.check_ray().detail
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", f"http://127.0.0.1:{port}"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            assert "answers" in checks.check_ray().detail
        monkeypatch.delenv("RAY_ADDRESS")
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text(f"127.0.0.1:{port}")
        assert "cluster of this machine" in checks.check_ray().detail
    assert "ray stop" in checks.check_ray().advice
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{_closed_port()}")
    check = checks.check_ray()
    assert check.status == "warn"
    assert "unset RAY_ADDRESS" in check.advice


@pytest.fixture
def hub() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(403)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_hub_answers_or_does_not(monkeypatch: pytest.MonkeyPatch, hub: str) -> None:
    assert "HF_HUB_OFFLINE" in checks.check_hub().detail
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HF_ENDPOINT", hub)
    assert checks.check_hub().status == "ok"
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{_closed_port()}")
    check = checks.check_hub()
    assert check.status == "warn"
    assert "HF_HUB_OFFLINE=1" in check.advice


def test_wandb_is_told_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert "wandb login" in checks.check_wandb().advice
    monkeypatch.setenv("WANDB_API_KEY", "s" * 40)
    check = checks.check_wandb()
    assert check.detail == "online (a key is found)"


def test_places_and_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "file"))
    assert "SHARDYARD_CACHE" in checks.check_corpus_cache().advice
    monkeypatch.setenv("SHARDYARD_CACHE", str(tmp_path / "new" / "cache"))
    assert checks.check_corpus_cache().status == "ok"
    assert not (tmp_path / "new").exists(), "looking changes nothing"
    monkeypatch.setattr(checks.resource, "getrlimit", lambda _: (256, 4096))
    assert "ulimit" in checks.check_open_files().advice
    small = type("Usage", (), {"total": 64 * 2**20, "free": 60 * 2**20})()
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: small)
    assert "--shm-size" in checks.check_shared_memory().advice
    assert "free some space" in checks.check_runs_folder(str(tmp_path)).advice
