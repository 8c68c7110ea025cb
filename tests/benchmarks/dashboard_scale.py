"""The dashboard at scale: 10,000 runs listed, 50 runs of 100,000 points drawn, runs that write while it looks.

Run folders are synthetic. Answers come from the application itself, so their figures are those of the server alone; the
chart is also drawn in Chromium, from the change of the address to the chart that is there. `cpu` is the share of one
core that following takes, memory the greatest that the process ever held.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from shardyard.dashboard.index.index import Index
from shardyard.dashboard.index.store import Store
from shardyard.dashboard.web.security import LOOPBACK, Gate
from shardyard.dashboard.web.server import make_app
from shardyard.recipe.loading.load import dump_recipe, load_recipe

QUERIES = {
    "first page": {},
    "sorted by the best evaluation": {"sort": "eval.loss:best:asc", "columns": "eval.loss:best,recipe.optimizer.lr"},
    "by state, recipe and metric": {"query": "state = finished and recipe.optimizer.lr > 3e-4 and eval.loss < 3"},
    "by name, in groups": {"query": "name ~ run-1", "group": "recipe"},
    "last page": {"offset": "9900", "sort": "train.loss:smoothed:desc"},
}
WRITER = """
import json, sys, time
files = [open(path, "a", buffering=1) for path in sys.argv[2:]]
step = 0
while True:
    step += 1
    for file in files:
        metrics = {f"perf/m{i}": step * i for i in range(16)}
        file.write(json.dumps({"step": step, "time": time.time(), "train/loss": 3.0, **metrics}) + "\\n")
    time.sleep(float(sys.argv[1]))
"""


def write_runs(folder: Path, count: int, points: int, prefix: str, metrics: int = 10) -> None:
    """Run folders as launches leave them, apart from their checkpoints."""
    resolved = dump_recipe(load_recipe("gpt/quickstart").recipe)
    chance = random.Random(0)
    names = [f"perf/m{number}" for number in range(metrics)]
    for number in range(count):
        run = folder / f"{prefix}-{number}-20260101-000000-{number:04x}"
        run.mkdir(parents=True)
        created = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
        info = {"id": run.name, "name": f"{prefix}-{number % 50}", "state": "finished", "created": created.isoformat()}
        (run / "run.json").write_text(json.dumps({**info, "total_steps": points, "attempts": 1, "world_size": 2}))
        lr = 10 ** chance.uniform(-4, -3)
        (run / "resolved.yaml").write_text(resolved.replace("lr: 0.001", f"lr: {lr:.6f}"))
        with (run / "metrics.jsonl").open("w") as file:
            for step in range(1, points + 1):
                values = {"step": step, "time": 1e9 + step, "train/loss": 2 + 4 / step + chance.random() / 9}
                file.write(json.dumps(values | dict.fromkeys(names, float(step))) + "\n")
            file.write(
                json.dumps({"step": points, "time": 2e9, "eval/validation/loss": 2 + chance.random() * 2}) + "\n"
            )


def open_app(runs: Path, cache: Path) -> tuple[Index, TestClient, float]:
    """A server that has read everything, and the seconds that it took."""
    index = Index(runs, Store(runs, cache))
    begun = time.perf_counter()
    index.catch_up(3600)
    seconds = time.perf_counter() - begun
    client = TestClient(make_app(index, Gate("t" * 32, LOOPBACK, 8270)), base_url="http://127.0.0.1:8270")
    client.headers["authorization"] = "Bearer " + "t" * 32
    return index, client, seconds


def milliseconds(client: TestClient, path: str, parameters: dict[str, str], times: int) -> dict[str, float]:
    """Server time of a request, as the server says it, and the time until all of it has come."""
    told, whole = [], []
    for _ in range(times):
        begun = time.perf_counter()
        answer = client.get(path, params=parameters)
        whole.append((time.perf_counter() - begun) * 1000)
        assert answer.status_code == 200, answer.text
        told.append(float(answer.headers["server-timing"].rpartition("=")[2]))
    return {
        "first": told[0],
        "median": statistics.median(told),
        "worst": max(told),
        "with JSON": statistics.median(whole),
    }


def listing(runs: Path, cache: Path, count: int) -> dict[str, Any]:
    write_runs(runs, count, 40, "run")
    index, client, seconds = open_app(runs, cache)
    found: dict[str, Any] = {"runs": count, "index built (s)": seconds}
    with client:
        found |= {name: milliseconds(client, "/api/runs", parameters, 9) for name, parameters in QUERIES.items()}
    begun = time.perf_counter()
    index, client, seconds = open_app(runs, cache)
    found["index opened again (s)"] = time.perf_counter() - begun
    found["index (MB)"] = index.store.path.stat().st_size / 1e6
    begun_cpu, begun = time.process_time(), time.perf_counter()
    index.start()
    time.sleep(10)
    found["quiet runs: cpu"] = (time.process_time() - begun_cpu) / (time.perf_counter() - begun)
    index.stop()
    return found


def curves(runs: Path, cache: Path, count: int, points: int) -> dict[str, Any]:
    write_runs(runs, count, points, "long", metrics=1)
    size = sum(path.stat().st_size for path in runs.glob("*/metrics.jsonl"))
    _, client, seconds = open_app(runs, cache)
    found: dict[str, Any] = {
        "runs": count,
        "points": points,
        "index built (s)": seconds,
        "read (MB/s)": size / 1e6 / seconds,
    }
    with client:
        names = ",".join(sorted(path.name for path in runs.iterdir()))
        for smooth in ("0", "0.9"):
            asked = {"runs": names, "metrics": "train/loss", "points": "1500", "smooth": smooth}
            begun = time.process_time()
            found[f"smooth {smooth}"] = milliseconds(client, "/api/series", asked, 5)
            found[f"smooth {smooth}"]["CPU time"] = (time.process_time() - begun) * 1000 / 5
    found["drawn in Chromium"] = drawn(runs, cache, names)
    return found


def drawn(runs: Path, cache: Path, names: str) -> dict[str, float] | str:
    """Milliseconds until the comparison of these runs is on the screen.

    `first` and `median` (of five) begin on the table of runs; `opened` begins with the address in a new browser, which
    has to read the page and plotly first.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return "left out: playwright is not installed"
    if (chromium := shutil.which("chromium")) is None:
        return "left out: chromium is not installed"
    command = [sys.executable, "-m", "shardyard.cli.main", "dashboard", "--runs-dir", str(runs), "--port", "0"]
    # The index that the command reads lies in `index` of the cache.
    (cache.parent / "home").mkdir()
    (cache.parent / "home" / "index").symlink_to(cache)
    environment = {**os.environ, "SHARDYARD_CACHE": str(cache.parent / "home")}
    process = subprocess.Popen([*command, "--no-browser"], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        entry = process.stdout.readline().split()[-1]
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(entry)
            page.wait_for_selector("table", timeout=60_000)
            while not page.evaluate("!!window.Plotly"):
                page.wait_for_timeout(50)
            times = [_drawn_once(page, names, number) for number in range(6)]
            state = page.context.storage_state()
            browser.close()
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900}, storage_state=state)
            begun = time.perf_counter()
            page.goto(f"{entry.partition('?')[0]}#/compare?runs={names}&only=train/loss&smooth=0.8")
            page.wait_for_selector("[data-drawn=yes]", timeout=60_000)
            opened = (time.perf_counter() - begun) * 1000
            browser.close()
    finally:
        process.terminate()
        process.wait()
    return {"first": times[0], "median": statistics.median(times[1:]), "opened": opened}


def _drawn_once(page: Any, names: str, number: int) -> float:
    page.evaluate("location.hash = '#/runs'")
    page.wait_for_selector("table", timeout=60_000)
    # Another smoothing each time, so that no answer is one that was given before.
    place = f"#/compare?runs={names}&only=train/loss&smooth=0.{number + 1}"
    begun = time.perf_counter()
    page.evaluate("place => { location.hash = place; }", place)
    page.wait_for_selector("[data-drawn=yes]", timeout=60_000)
    return (time.perf_counter() - begun) * 1000


def live(runs: Path, cache: Path, count: int, seconds: float, pause: float) -> dict[str, Any]:
    write_runs(runs, count, 10, "live")
    for run in runs.iterdir():
        info = json.loads((run / "run.json").read_text()) | {"state": "running"}
        (run / "run.json").write_text(json.dumps(info))
    index = Index(runs, Store(runs, cache))
    index.catch_up()
    paths = [str(run / "metrics.jsonl") for run in runs.iterdir()]
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(pause), *paths])
    try:
        index.start()
        time.sleep(2)
        begun_cpu, begun = time.process_time(), time.perf_counter()
        while time.perf_counter() - begun < seconds:
            index.watch()
            time.sleep(1)
        cpu = (time.process_time() - begun_cpu) / (time.perf_counter() - begun)
    finally:
        writer.terminate()
        writer.wait()
    index._stop.set()
    time.sleep(1)
    index.catch_up()
    written = sum(Path(path).read_bytes().count(b"\n") for path in paths)
    (rows,) = index.store.reader.execute("SELECT SUM(rows) FROM runs").fetchone()
    assert rows == written, (rows, written)
    index.stop()
    return {"runs": count, "lines a second": count / pause, "lines": written, "cpu": cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--long", type=int, default=50)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only", choices=["listing", "curves", "live"])
    asked = parser.parse_args()
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "cores": os.cpu_count()}
    folder = Path(tempfile.mkdtemp(prefix="dashboard-scale-"))
    try:
        for name, part in {
            "listing": lambda place: listing(place / "runs", place / "cache", asked.runs),
            "curves": lambda place: curves(place / "runs", place / "cache", asked.long, asked.points),
            "live": lambda place: [live(place / str(n), place / f"c{n}", n, asked.seconds, 0.5) for n in (1, 100)],
        }.items():
            if asked.only in (None, name):
                found[name] = part(folder / name)
                shutil.rmtree(folder / name)
                found[f"{name}: memory (MB)"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                print(json.dumps({name: found[name]}, indent=1), flush=True)  # noqa: T201
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(json.dumps(found))  # noqa: T201


if __name__ == "__main__":
    main()
