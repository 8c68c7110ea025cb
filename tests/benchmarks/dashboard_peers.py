"""The same curves here, in TensorBoard, MLflow, trackio and Aim: time to read them, to answer, and what is shown.

    python -m venv peers-venv && peers-venv/bin/pip install tensorboard mlflow trackio aim
    python tests/benchmarks/dashboard_peers.py --venv peers-venv

Each tool gets the metric in its own storage, written by its own library; that writing is not timed. `ready` is the
time from there until the server can show all of it, `answer` that of the request, or requests, for one chart of all
runs, JSON included, the median of five; `points` is how many come; `spike` in how many runs a spike of one step is
among them. A tool that is not installed in the environment is named and left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SPIKE = 99.0
METRIC = "train/loss"

# Each script reads {"runs": {name: [values]}, "folder": …} and prints one JSON line. `answer()` makes one chart's data.
_COMMON = """
import json, math, os, resource, statistics, sys, time
asked = json.load(open(sys.argv[1]))
runs, folder = asked["runs"], asked["folder"]
def timed(answer, repeats=5):
    seconds, found = [], None
    for _ in range(repeats):
        begun = time.perf_counter(); found = answer(); seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds), found
def told(ready, seconds, series, memory=None):
    memory = memory or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"ready (s)": ready, "answer (ms)": seconds * 1000, "points": sum(map(len, series)),
        "spike": f"{sum(max(values) > 50 for values in series)} of {len(series)} runs", "memory (MB)": memory}))
"""
_TENSORBOARD = (
    _COMMON
    + """
import subprocess, urllib.parse, urllib.request
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
for name, values in runs.items():
    writer = EventFileWriter(os.path.join(folder, name), max_queue_size=100000, flush_secs=600)
    for step, value in enumerate(values, 1):
        summary = Summary(value=[Summary.Value(tag="train/loss", simple_value=value)])
        writer.add_event(Event(step=step, wall_time=1e9 + step, summary=summary))
    writer.close()
import socket
with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0)); port = probe.getsockname()[1]
begun = time.perf_counter()
server = subprocess.Popen([sys.executable, "-m", "tensorboard.main", "--logdir", folder, "--port", str(port)],
    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
def get(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
        return json.load(answer)
def chart():
    query = "/data/plugin/scalars/scalars?tag=train%2Floss&run="
    return [[point[2] for point in get(query + urllib.parse.quote(name))] for name in runs]
def last_steps():
    query = "/data/plugin/scalars/scalars?tag=train%2Floss&run="
    return [get(query + urllib.parse.quote(name))[-1][1] for name in runs]
try:
    while time.perf_counter() - begun < 500:
        try:
            if all(step == len(values) for step, values in zip(last_steps(), runs.values())):
                break
        except Exception:
            time.sleep(0.2)
    ready = time.perf_counter() - begun
    seconds, series = timed(chart)
    status = open(f"/proc/{server.pid}/status").read()
    memory = int(status.partition("VmHWM:")[2].split()[0]) / 1024
finally:
    server.terminate(); server.wait()
told(ready, seconds, series, memory)
"""
)
_MLFLOW = (
    _COMMON
    + """
import logging; logging.disable(logging.WARNING)
from mlflow.entities import Metric
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
place = (f"sqlite:///{folder}/mlflow.db", f"file://{folder}/artifacts")
store = SqlAlchemyStore(*place)
experiment, ids = store.create_experiment("benchmark"), []
for name, values in runs.items():
    ids.append(store.create_run(experiment, "me", 0, [], name).info.run_id)
    for first in range(0, len(values), 1000):
        part = enumerate(values[first : first + 1000], first + 1)
        store.log_batch(ids[-1], [Metric("train/loss", v, 10**12 + step, step) for step, v in part], [], [])
begun = time.perf_counter()
store = SqlAlchemyStore(*place)
def chart():
    # As its page asks: 2500 points a run at most.
    found = store.get_metric_history_bulk_interval(ids, "train/loss", 2500, None, None)
    rows = [{"run_id": m.run_id, "step": m.step, "value": m.value, "timestamp": m.timestamp} for m in found]
    return json.loads(json.dumps(rows))
chart()
ready = time.perf_counter() - begun
seconds, rows = timed(chart)
series = {}
for row in rows:
    series.setdefault(row["run_id"], []).append(row["value"])
told(ready, seconds, list(series.values()))
"""
)
_TRACKIO = (
    _COMMON
    + """
os.environ["TRACKIO_DIR"] = folder
from trackio.sqlite_storage import SQLiteStorage
from trackio.server import get_logs_batch
for name, values in runs.items():
    steps = list(range(1, len(values) + 1))
    SQLiteStorage.bulk_log("benchmark", name, [{"train/loss": value} for value in values], steps)
begun = time.perf_counter()
def chart():
    return json.loads(json.dumps(get_logs_batch("benchmark", [{"run": name} for name in runs])))
chart()
ready = time.perf_counter() - begun
seconds, found = timed(chart)
told(ready, seconds, [[row["train/loss"] for row in run["logs"] if "train/loss" in row] for run in found])
"""
)
_AIM = (
    _COMMON
    + """
import asyncio, subprocess
from aim import Repo, Run
from aim.sdk.types import QueryReportMode
from aim.web.api.runs.utils import metric_search_result_streamer
repo = Repo.from_path(folder, init=True)
for name, values in runs.items():
    run = Run(repo=repo, system_tracking_interval=None, log_system_params=False, capture_terminal_logs=False)
    for step, value in enumerate(values, 1):
        run.track(value, name="train/loss", step=step)
    run.close()
begun = time.perf_counter()
# What its server does in the background.
reindex = [os.path.join(os.path.dirname(sys.executable), "aim"), "storage", "--repo", folder, "reindex"]
subprocess.run(reindex, input=b"y", check=True, capture_output=True)
repo = Repo.from_path(folder)
QUERY = 'metric.name == "train/loss"'
async def streamed():
    # As its page asks: 500 points a run by default.
    found = repo.query_metrics(QUERY, report_mode=QueryReportMode.PROGRESS_TUPLE)
    return [part async for part in metric_search_result_streamer(found, True, 500, None, False)]
def chart():
    return asyncio.run(streamed())
chart()
ready = time.perf_counter() - begun
seconds, parts = timed(chart)
assert len(parts) == len(runs), len(parts)
found = repo.query_metrics(QUERY, report_mode=QueryReportMode.DISABLED).iter_runs()
told(ready, seconds, [m.data.sample(500).numpy()[1][0].tolist() for run in found for m in run.iter()])
"""
)
_OURS = (
    _COMMON
    + """
from pathlib import Path
from starlette.testclient import TestClient
from shardyard.dashboard.index.index import Index
from shardyard.dashboard.web.security import LOOPBACK, Gate
from shardyard.dashboard.web.server import make_app
from shardyard.dashboard.index.store import Store
place = Path(folder) / "runs"
for name, values in runs.items():
    run = place / name
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"id": name, "name": name, "state": "finished"}))
    lines = (json.dumps({"step": step, "time": 1e9 + step, "train/loss": v}) for step, v in enumerate(values, 1))
    (run / "metrics.jsonl").write_text("".join(f"{line}\\n" for line in lines))
begun = time.perf_counter()
index = Index(place, Store(place, Path(folder) / "cache"))
index.catch_up(3600)
ready = time.perf_counter() - begun
client = TestClient(make_app(index, Gate("t" * 32, LOOPBACK, 8270)), base_url="http://127.0.0.1:8270")
client.headers["authorization"] = "Bearer " + "t" * 32
def chart():
    asked = {"runs": ",".join(runs), "metrics": "train/loss", "points": "1500"}
    return client.get("/api/series", params=asked).json()["series"]
with client:
    seconds, found = timed(chart)
told(ready, seconds, [[value for value in one["max"] if value is not None] for one in found])
"""
)
PEERS = {"tensorboard": _TENSORBOARD, "mlflow": _MLFLOW, "trackio": _TRACKIO, "aim": _AIM}


def curves(count: int, points: int) -> dict[str, list[float]]:
    """Losses that fall, each with a spike of one step."""
    return {
        f"run-{number:03d}": [
            SPIKE if step == points // 2 + number else 2 + 4 / step + (step * 7919 + number) % 97 / 970
            for step in range(1, points + 1)
        ]
        for number in range(count)
    }


def measured(python: Path | str, script: str, runs: dict[str, list[float]], seconds: float) -> dict[str, Any]:
    """What one tool's script printed; or why it did not."""
    with tempfile.TemporaryDirectory(prefix="dashboard-peers-") as scratch:
        folder = Path(scratch)
        (folder / "store").mkdir()
        (folder / "asked.json").write_text(json.dumps({"runs": runs, "folder": str(folder / "store")}))
        (folder / "script.py").write_text(script)
        try:
            done = subprocess.run(
                [str(python), str(folder / "script.py"), str(folder / "asked.json")],
                capture_output=True,
                text=True,
                timeout=seconds,
                cwd=folder,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
            )
        except subprocess.TimeoutExpired:
            return {"problem": f"not done after {seconds:.0f} s"}
        if done.returncode:
            return {"problem": (done.stderr.strip().splitlines() or ["it ended without a word"])[-1]}
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found


def installed(python: Path, name: str) -> str | None:
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, help="a virtual environment with the other tools")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600, help="limit for each tool")
    parser.add_argument("--only", choices=["shardyard", *PEERS])
    asked = parser.parse_args()
    runs = curves(asked.runs, asked.points)
    results: dict[str, dict[str, Any]] = {}
    if asked.only in (None, "shardyard"):
        results["shardyard"] = measured(sys.executable, _OURS, runs, asked.seconds)
        print(json.dumps({"shardyard": results["shardyard"]}), flush=True)  # noqa: T201
    for name, script in PEERS.items():
        if asked.only not in (None, name):
            continue
        python = asked.venv / "bin" / "python" if asked.venv else None
        version = installed(python, name) if python is not None else None
        if python is None or version is None:
            print(f"{name} is left out: it is not in {asked.venv or 'an environment that --venv names'}")  # noqa: T201
            continue
        results[f"{name} {version}"] = measured(python, script, runs, asked.seconds)
        print(json.dumps({f"{name} {version}": results[f"{name} {version}"]}), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
