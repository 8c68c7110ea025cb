"""Jobs on a real Ray cluster with a token: submitted, queued, followed, stopped, refused; and ten at once."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from shardyard.launch.jobs.submission import SubmitRequest
from shardyard.launch.run.prepare import prepare
from shardyard.launch.schedulers.fit import world_on
from shardyard.launch.schedulers.ray.api import TERMINAL, JobsApi
from shardyard.launch.schedulers.ray.jobs import connect, submit
from shardyard.recipe.loading.load import load_recipe
from support.cli import COMMAND, write_recipe
from support.cluster import RAY, free_port, ray_head
from support.hold import SLOW
from support.tiny import write_corpus
from support.waiting import PATIENCE_SECONDS, until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

ONE = ["-s", "cluster.workers=1"]
SECRETS = {"WANDB_API_KEY": "canary-0123456789abcdef0123456789abcdef01234567", "HF_TOKEN": "hf_canaryCanaryCanary"}


class Cluster:
    """A Ray head, and the command lines of a person who uses it."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        self.environment, self.folder = environment, folder
        self.runs = folder / "runs"
        self.url = environment["RAY_API_SERVER_ADDRESS"]

    def start(self, *arguments: object, **variables: str) -> subprocess.Popen[str]:
        """`shardyard …` with run folders in the folder of the test."""
        known = {**os.environ, **self.environment, "SHARDYARD_RUNS": str(self.runs), "SHARDYARD_HOME": str(self.folder)}
        return subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={name: value for name, value in {**known, **variables}.items() if value},
        )

    def run(self, *arguments: object, **variables: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command."""
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        return process.returncode, out, err

    def submit(self, *arguments: object, **variables: str) -> str:
        """Id of a new job."""
        code, out, err = self.run("submit", *arguments, "-q", **variables)
        assert code == 0, err
        return out.strip()

    def ray(self, *arguments: str) -> str:
        """Output of Ray's own command."""
        done = subprocess.run(
            [RAY, "job", *arguments], capture_output=True, text=True, env={**os.environ, **self.environment}, check=True
        )
        return done.stdout + done.stderr

    def info(self, job: str) -> dict[str, Any]:
        """run.json of a job."""
        info: dict[str, Any] = json.loads((self.runs / job / "run.json").read_text())
        return info

    def ps(self, *options: str) -> dict[str, dict[str, Any]]:
        """Jobs by id."""
        code, out, err = self.run("ps", "--json", *options)
        assert code == 0, err
        return {job["id"]: job for job in json.loads(out)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("jobs")
    with ray_head(folder, dashboard=True) as environment:
        yield Cluster(environment, folder)


@pytest.fixture(scope="module")
def recipe(cluster: Cluster) -> Path:
    """A tiny recipe of two workers; W&B is left to the variables of the person who submits."""
    return write_recipe(
        cluster.folder,
        write_corpus(cluster.folder),
        train={"steps": 8},
        evaluate={"every": 1000},
        sample={"prompts": []},
        tracking={"wandb": {"mode": "auto"}, "tags": ["nightly", "tiny"]},
    )


@pytest.fixture
def api(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> JobsApi:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    return connect(None)


def _step(cluster: Cluster, job: str) -> int:
    metrics = cluster.runs / job / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def test_a_job_waits_runs_and_is_stopped_and_nothing_secret_shows(cluster: Cluster, recipe: Path, api: JobsApi) -> None:
    endless = ["-s", "train.steps=100000", "-s", "checkpoint.every=100000", "--name", "long", "-s", "train.threads=1"]
    endless += ["-s", SLOW]
    first = cluster.submit(recipe, *endless, WANDB_MODE="disabled")
    until(lambda: _step(cluster, first) >= 2, "the first job trains")
    second = cluster.submit(recipe, *ONE, WANDB_MODE="disabled", **SECRETS)
    until(lambda: "free" in cluster.ps().get(second, {}).get("doing", ""), "the second job waits")
    listed = cluster.ps()
    assert listed[second]["doing"] == "waiting for resources: needs 1 CPU core on 1 node; 0 free"
    assert listed[first]["doing"].startswith("step ")
    assert (listed[first]["name"], listed[first]["state"]) == ("long", "RUNNING")
    assert listed[first]["tags"] == ["nightly", "tiny"]
    assert "/100000, loss " in listed[first]["doing"]
    raw = cluster.ray("list")
    assert first in raw
    assert second in raw
    assert "run folder" in cluster.ray("logs", second)
    _nothing_shows(cluster, api, first, second)

    cluster.ray("stop", first)
    code, _, err = cluster.run("wait", first[:-2])
    assert code == 130, err
    info = cluster.info(first)
    assert (info["state"], info["exit_code"]) == ("interrupted", 130)
    assert info["job"]["submission_id"] == first
    assert info["job"]["address"] == cluster.url
    assert list((cluster.runs / first / "checkpoints").glob("step-*/manifest.json"))

    code, out, err = cluster.run("logs", "-f", second)
    assert code == 0, err
    assert "step" in out
    assert "8/8" in out
    assert cluster.info(second)["state"] == "finished"
    # Where it was submitted nobody knew the node's CPU; the job asked, and its run folder keeps the answer.
    precision = cluster.info(second)["plan"]["precision"]
    assert f"precision {precision}: the CPU" in out
    assert f"\n  precision: {precision}\n" in (cluster.runs / second / "resolved.yaml").read_text()
    # The rank had the variables: WANDB_MODE alone keeps W&B from writing its folder.
    assert not list((cluster.runs / second).glob("wandb/*run*"))
    _nothing_shows(cluster, api, first, second)
    assert cluster.ps() == {}
    assert cluster.ps("--all")[second]["doing"].startswith("exit code 0, step 8/8")
    code, out, _ = cluster.run("inspect", second)
    assert "needs" in out
    assert str(cluster.runs / second) in out
    code, out, _ = cluster.run("logs", "latest", "--rank", "0", "-n", "1")
    assert (code, len(out.splitlines())) == (0, 1)
    assert out.endswith(" rank 0 of 1: finished\n")


def _nothing_shows(cluster: Cluster, api: JobsApi, *jobs: str) -> None:
    """No value of a secret is in what the cluster tells, writes, or shows of its processes."""
    paths = ["/api/jobs/", *(f"/api/jobs/{job}" for job in jobs), *(f"/api/jobs/{job}/logs" for job in jobs)]
    paths += [f"/api/v0/{kind}?detail=1" for kind in ("jobs", "workers", "actors", "runtime_envs", "tasks")]
    texts = {path: json.dumps(api.get(path)) for path in paths}
    assert all(job in texts["/api/jobs/"] for job in jobs)
    texts |= {f"pid {pid}": " ".join(_command(pid)) for pid in psutil.pids()}
    session = Path("/tmp/ray") / api.get("/api/version")["session_name"]
    files = [path for folder in (session, cluster.runs, cluster.folder) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("job-driver-") for path in files)
    found = [name for name, text in texts.items() if any(value in text for value in SECRETS.values())]
    for path in files:
        content = path.read_bytes() if path.stat().st_size < 2**26 else b""
        found += [str(path) for value in SECRETS.values() if value.encode() in content]
    assert not found


def _command(pid: int) -> list[str]:
    try:
        return list(psutil.Process(pid).cmdline())
    except psutil.Error:
        return []


def test_the_head_forgets_the_secrets_once_they_are_taken(cluster: Cluster) -> None:
    script = (
        "import os; from ray._raylet import GcsClient; client = GcsClient(address=os.environ['RAY_ADDRESS']); "
        "keys = client.internal_kv_keys(b'gcs://', None); "
        "print(keys, [key for key in keys if b'shardyard-' in key and client.internal_kv_get(key, None)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **cluster.environment}
    )
    assert done.returncode == 0, done.stderr
    assert "_ray_pkg_" in done.stdout
    assert done.stdout.rstrip().endswith("[]"), done.stdout


def test_exit_codes_of_failed_jobs_and_of_those_whose_time_is_up(cluster: Cluster, recipe: Path) -> None:
    quiet = {"WANDB_MODE": "disabled"}
    diverging = ["-s", "optimizer={name: sgd, lr: 1.0e+30}", "-s", "schedule.warmup=0"]
    failing = cluster.submit(recipe, *ONE, *diverging, **quiet)
    begin = time.monotonic()
    assert cluster.run("wait", failing)[0] == 1
    # Time for a start and some steps, as long as they take on this machine.
    limit = f"{10 + 1.5 * (time.monotonic() - begin):.0f}s"
    late = cluster.submit(recipe, *ONE, "-s", "train.steps=100000", "-s", f"job.time_limit={limit}", **quiet)
    code, _, err = cluster.run("wait", late, "--timeout", "0.5")
    assert code == 124, err
    assert "is still" in err
    code, _, err = cluster.run("wait", late)
    assert code == 124, err
    assert (cluster.info(late)["state"], cluster.info(late)["outcome"]) == ("interrupted", "timeout")
    assert list((cluster.runs / late / "checkpoints").glob("step-*/manifest.json"))
    shown = cluster.ps("--all")
    assert (shown[failing]["state"], shown[failing]["exit_code"]) == ("FAILED", 1)
    assert "the loss is nan" in cluster.run("logs", failing)[1]


class SlowPipe:
    """Forwards connections to a port of loopback, what is sent to it slowly."""

    def __init__(self, port: int) -> None:
        self._to, self.sent = port, 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            client, _ = self._server.accept()
            there = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._pump, args=(client, there, 1 << 16, 0.05), daemon=True).start()
            threading.Thread(target=self._pump, args=(there, client, 1 << 16, 0.0), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, size: int, pause: float) -> None:
        try:
            while data := source.recv(size):
                sink.sendall(data)
                self.sent += len(data)
                time.sleep(pause)
        except OSError:
            pass
        for end in (source, sink):
            end.close()


def test_bad_input_is_refused_and_leaves_nothing(cluster: Cluster, recipe: Path, api: JobsApi, tmp_path: Path) -> None:
    before = {job["submission_id"] for job in api.jobs()}
    wrong = tmp_path / "token"
    wrong.write_text("0" * 64)
    wrong.chmod(0o600)
    large, loose = tmp_path / "large", tmp_path / "loose"
    large.mkdir()
    loose.mkdir()
    with (large / "weights.bin").open("wb") as file:
        file.truncate(600 * 2**20)
    (loose / "noise.bin").write_bytes(os.urandom(20 * 2**20))
    nobody = f"http://127.0.0.1:{free_port()}"
    cases: list[tuple[list[Any], dict[str, str], int, str]] = [
        (["--address", nobody], {}, 1, "does not answer: Connection refused"),
        (["--address", cluster.url], {"RAY_AUTH_TOKEN_PATH": str(wrong)}, 1, "rejects this token"),
        (["--address", cluster.url], {"RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)}, 1, "requires a token"),
        (["-s", "cluster.workers=8", "-s", "data.streams=8"], {}, 2, "needs 8 CPU cores; 2 in the cluster"),
        (["-s", "cluster.placement=strict_spread"], {}, 2, "on 2 nodes"),
        (["-s", "cluster.gpus_per_worker=1"], {"DS_ACCELERATOR": ""}, 2, "needs 2 GPUs; 0 in the cluster"),
        (["--working-dir", large], {}, 2, "Ray's limit is 512.0 MiB. Largest entries: weights.bin 600.0 MiB"),
        (["-s", "train.steps=many"], {}, 2, "train.steps"),
        (["--name", "no spaces"], {}, 2, "is not a valid name"),
    ]
    for options, variables, code, message in cases:
        found, out, err = cluster.run("submit", recipe, *options, "--runs-dir", tmp_path / "runs", **variables)
        assert (found, out) == (code, ""), (options, err)
        assert message in err, (options, err)
        assert "Traceback" not in err
    pipe = SlowPipe(int(cluster.url.rpartition(":")[2]))
    slow = f"http://127.0.0.1:{pipe.port}"
    upload = cluster.start("submit", recipe, "--working-dir", loose, "--address", slow, "--runs-dir", tmp_path / "runs")
    assert upload.stderr is not None
    assert "loose: 1 file, 20.0 MiB" in upload.stderr.readline()
    assert upload.stderr.readline().startswith("uploading 20.0 MiB")
    until(lambda: pipe.sent > 1 << 20, "a part of it is sent")
    upload.send_signal(signal.SIGINT)
    _, err = upload.communicate(timeout=PATIENCE_SECONDS)
    assert upload.returncode == 130, err
    assert "Traceback" not in err
    assert {job["submission_id"] for job in api.jobs()} == before
    assert not (tmp_path / "runs").exists()


@pytest.mark.timeout(1500)
def test_six_jobs_on_a_cluster_that_holds_two(cluster: Cluster, recipe: Path, api: JobsApi) -> None:
    loaded = load_recipe(
        str(recipe), ["cluster.workers=1", "train.steps=2", "schedule.warmup=1", "tracking.wandb.mode=disabled"]
    )
    made = prepare(loaded.recipe, world_on(loaded.recipe, None))
    sizes = [_resident(cluster)]
    ids = [
        submit(SubmitRequest(str(recipe), (), loaded, made, cluster.runs, f"job-{number}"), lambda line: None, api)
        for number in range(6)
    ]

    def over() -> bool:
        sizes.append(_resident(cluster))
        return set(_states(api, ids)) <= TERMINAL

    until(over, lambda: f"all have ended: {_states(api, ids)}", seconds=4 * PATIENCE_SECONDS, every=2)
    assert _states(api, ids) == ["SUCCEEDED"] * 6
    placed = [cluster.info(job)["placed"] for job in ids]
    assert placed == sorted(placed), "jobs were placed in another order than they were submitted in"
    assert all(cluster.info(job)["state"] == "finished" for job in ids)
    sys.stdout.write(f"head: {[round(size) for size in sizes]} MiB\n")
    assert sizes[-1] < sizes[0] + 100


def _states(api: JobsApi, ids: list[str]) -> list[str]:
    found = {job["submission_id"]: job["status"] for job in api.jobs()}
    return [found[job] for job in ids]


def _resident(cluster: Cluster) -> float:
    """MiB of the daemons of the head: those that name the port of its GCS, and the raylet's agents."""
    port, found = cluster.environment["RAY_ADDRESS"].rpartition(":")[2], []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if port in line and any(name in line for name in ("gcs_server", "raylet/raylet", "dashboard.py", "monitor.py")):
            found.append(process)
            agents = process.children() if "raylet/raylet" in line else []
            found += [child for child in agents if "Agent" in " ".join(_command(child.pid))]
    assert len(found) >= 3, found
    return float(sum(process.memory_info().rss for process in found)) / 2**20
