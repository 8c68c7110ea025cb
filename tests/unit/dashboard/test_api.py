"""What the page is told: runs, curves, logs, checkpoints, sweeps, recipes, reports, and what is new."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from starlette.testclient import TestClient

from shardyard.dashboard.index.index import check_folder
from shardyard.dashboard.web import cluster, isolated, logs
from shardyard.dashboard.web.api import State
from shardyard.dashboard.web.security import Gate
from shardyard.dashboard.web.stream import Watch, _news
from shardyard.errors import ShardyardError, UsageError
from shardyard.tracking.run import profile
from shardyard.tracking.run.folder import RunFolder
from shardyard.tracking.run.holder import this_process
from shardyard.tracking.run.profile import RankTimes
from support.dash_cases import add_lines, index_of, served, write_run
from support.waiting import PATIENCE_SECONDS, until


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = write_run(tmp_path / "runs", "one-1", losses=[5.0, 4.0, 3.0, 2.0], stage=2, seed=1)
    write_run(tmp_path / "runs", "two-1", losses=[5.0, 4.5], stage=2, seed=2, name="one")
    write_run(tmp_path / "runs", "three-1", losses=[1.0], stage=3)
    (folder / "logs" / "driver.log").write_text("".join(f"line {number}\n" for number in range(1, 1001)))
    (folder / "logs" / "rank-10.log").write_text("fine\nERROR: disk\nValueError: x\nUserWarning: y\n")
    (folder / "logs" / "rank-2.log").write_text("")
    return tmp_path / "runs"


@pytest.fixture
def client(runs: Path, tmp_path: Path) -> Iterator[TestClient]:
    with served(runs, tmp_path / "cache") as made:
        yield made


def got(client: TestClient, path: str, **parameters: Any) -> Any:
    answer = client.get(path, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_session_and_table(client: TestClient, runs: Path) -> None:
    session = got(client, "/api/session")
    assert (session["runs_dir"], session["unread"], session["problems"]) == (str(runs), 0, [])
    table = got(
        client, "/api/runs", query="recipe.zero.stage = 2", sort="loss:desc", columns="train.loss:best", limit=1
    )
    assert (table["total"], table["runs"][0]["id"], table["runs"][0]["values"]) == (
        2,
        "two-1",
        {"train.loss:best": 4.5},
    )
    assert client.get("/api/runs", params={"query": "stat = x"}).json()["nearest"] == "state"
    assert client.get("/api/runs", params={"limit": "many"}).json()["field"] == "limit"


def test_a_run_in_detail(client: TestClient) -> None:
    found = got(client, "/api/runs/one-1")
    assert (found["ranks"], found["metrics"]["train"]) == ([2, 10], ["train/loss", "train/tokens"])
    assert (found["progress"]["step"], found["progress"]["total_steps"]) == (4, 100)
    assert {"name": "logs/driver.log", "bytes": 8893} in found["files"]
    recipe = got(client, "/api/runs/one-1/recipe")
    assert recipe["derived"] == [["steps", "100", "given by train.steps"], ["memory: parameters", "2.1 MiB", ""]]
    assert "# Derived" not in recipe["resolved"]


def test_what_was_predicted_stands_beside_what_was_measured(runs: Path, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {"step": step, "time": 5000.0 + step, "perf/tokens_per_second": rate, "perf/step_seconds": 2.0}
        for step, rate in enumerate([1.0, 900.0, 1000.0, 1100.0, float("nan")], start=1)
    ]
    lines[1] |= {"memory/peak_allocated_bytes": 3e9, "memory/rss_bytes": 9e9}
    lines[2] |= {"memory/peak_allocated_bytes": 2e9}
    (runs / "one-1" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = {"device_bytes": 4 * 10**9, "gpu": "h100-80gb", "tokens_per_second": 1900.0, "step_seconds": 0, "mfu": "<b>"}
    info = json.loads((runs / "one-1" / "run.json").read_text()) | {"predicted": told}
    (runs / "one-1" / "run.json").write_text(json.dumps(info))
    with served(runs, tmp_path / "cache") as client:
        speed, step, memory = got(client, "/api/runs/one-1")["predicted"]
        assert got(client, "/api/runs/two-1")["predicted"] == []
    assert speed == {
        "what": "tokens_per_second", "measured": 950.0, "predicted": 1900.0, "difference": -0.5, "resident": False
    }  # fmt: skip
    assert (step["measured"], step["difference"]) == (2.0, None), "nothing is divided by a predicted 0"
    assert (memory["measured"], memory["difference"], memory["resident"]) == (3e9, -0.25, False)


def test_where_the_time_of_a_step_went(runs: Path, tmp_path: Path) -> None:
    times = (RankTimes(0, 1.0, {"forward": 0.4, "data": 0.1}), RankTimes(1, 1.0, {"forward": 0.4, "data": 0.3}))
    made = profile.Profile(4, 6, times, (profile.Advice(0.2, "More `readers`.", ("data.readers=2",)),))
    for name in ("one-1", "two-1"):
        (runs / name / "profile").mkdir()
        profile.keep(RunFolder(runs / name), made)
    garbled = runs / "two-1" / "profile" / profile.FILE
    garbled.write_text(garbled.read_text().replace("0.3", "NaN"))
    with served(runs, tmp_path / "cache") as client:
        found = got(client, "/api/runs/one-1")["profile"]
        assert got(client, "/api/runs/two-1")["profile"] is None
        assert got(client, "/api/runs/three-1")["profile"] is None
    assert (found["first"], found["last"], found["ranks"], found["step_seconds"]) == (4, 6, 2, 1.0)
    data, forward = found["parts"]
    assert (data["part"], data["share"], data["seconds"]) == ("data", pytest.approx(0.2), pytest.approx(0.2))
    assert (data["slowest"], data["slowest_seconds"], forward["part"]) == (1, 0.3, "forward")
    assert found["advice"] == [{"share": 0.2, "text": "More `readers`.", "set": ["data.readers=2"]}]


def test_time_left_follows_the_pace_since_the_last_restart(runs: Path, tmp_path: Path) -> None:
    lines = [{"step": step, "time": 5000.0 + 10 * step} for step in range(1, 21)]
    lines += [{"step": step, "time": 6000.0 + 2 * step} for step in range(11, 31)]
    (runs / "one-1" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = json.loads((runs / "one-1" / "run.json").read_text()) | {"state": "running"}
    (runs / "one-1" / "run.json").write_text(json.dumps(info))
    with served(runs, tmp_path / "cache") as client:
        assert got(client, "/api/runs/one-1")["progress"]["seconds_left"] == pytest.approx(2.0 * 70)


def test_curves(client: TestClient) -> None:
    found = got(client, "/api/series", runs="one-1,none,two-1", metrics="train/loss,none", smooth="0.6", x="tokens")
    assert [(one["run"], one["metric"]) for one in found["series"]] == [
        ("one-1", "train/loss"),
        ("two-1", "train/loss"),
    ]
    first = found["series"][0]
    assert (first["x"], first["min"], first["max"]) == ([10, 20, 30, 40], [5, 4, 3, 2], [5, 4, 3, 2])
    assert first["y"][0] == 5.0
    assert first["y"][3] == pytest.approx(2.0)  # points so far apart hardly know of each other
    assert first["cursor"] == 4
    part = got(client, "/api/series", **{"runs": "one-1", "metrics": "train/loss", "from": "2", "to": "2", "points": 2})
    assert part["series"][0]["x"] == [2, 3] or part["series"][0]["x"] == [1, 2, 3]
    for wrong in ({"x": "weight"}, {"from": "nan"}, {"points": "x"}, {"smooth": "much"}):
        answer = client.get("/api/series", params={"runs": "one-1", "metrics": "train/loss", **wrong})
        assert (answer.status_code, answer.json()["field"]) == (400, next(iter(wrong)))


def test_comparison_shows_only_what_differs_and_bands_over_seeds(client: TestClient) -> None:
    found = got(client, "/api/compare", runs="one-1,two-1,three-1")
    assert {row["path"] for row in found["recipe_diff"]} == {"name", "train.seed", "zero.stage"}
    assert found["recipe_diff"][-1]["values"] == {"one-1": 2, "two-1": 2, "three-1": 3}
    assert found["bands"] == [{"runs": ["one-1", "two-1"]}]
    assert [row["metrics"]["train/loss"] for row in found["results"]] == [2.0, 4.5, 1.0]
    # All that the page needs of each run: however many are compared, it asks once.
    run = got(client, "/api/runs/three-1")
    last = found["results"][-1]
    assert (last["groups"], last["problem"]) == (run["metrics"], run["summary"]["problem"])
    assert {name: last["info"][name] for name in ("name", "created")} == {
        name: run["info"].get(name) for name in ("name", "created")
    }


def test_logs_from_a_cursor(client: TestClient, runs: Path) -> None:
    last = got(client, "/api/runs/one-1/logs", lines=2)
    assert last["lines"] == [[999, "line 999", "info"], [1000, "line 1000", "info"]]
    log = runs / "one-1" / "logs" / "driver.log"
    with log.open("a") as file:
        file.write("new\nhalf")
    news = got(client, "/api/runs/one-1/logs", cursor=last["cursor"])
    assert news["lines"] == [[1001, "new", "info"]]
    with log.open("a") as file:
        file.write(" a line\n")
    assert got(client, "/api/runs/one-1/logs", cursor=news["cursor"])["lines"] == [[1002, "half a line", "info"]]
    log.write_text("short\n")
    assert got(client, "/api/runs/one-1/logs", cursor=news["cursor"])["lines"] == [[1, "short", "info"]]
    errors = got(client, "/api/runs/one-1/logs", rank="10", errors="1")
    assert [line[1] for line in errors["lines"]] == ["ERROR: disk", "ValueError: x"]
    assert got(client, "/api/runs/one-1/logs", rank="10", search="USERwarn")["lines"] == [
        [4, "UserWarning: y", "warning"]
    ]
    answer = client.get("/api/runs/one-1/logs", params={"rank": "77"})
    assert (answer.status_code, answer.json()) == (404, {"error": "Rank 77 has written no log yet."})


def test_the_end_of_a_huge_log_is_found_without_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "driver.log"
    with log.open("wb") as file:
        file.truncate(3 << 30)
        file.seek(0, os.SEEK_END)
        file.write(b"\n" + b"".join(b"line %d\n" % number for number in range(1000)) + b"x" * 100_000 + b"\n")
    read = 0
    real = logs.pread

    def counted(descriptor: int, count: int, offset: int) -> bytes:
        nonlocal read
        read += count
        return real(descriptor, count, offset)

    monkeypatch.setattr(logs, "pread", counted)
    found = logs.read_log(tmp_path, "driver", lines=3)
    assert [line[1][:8] for line in found["lines"]] == ["line 998", "line 999", "xxxxxxxx"]
    assert found["lines"][2][1].endswith("(96000 characters more)")
    assert found["lines"][0][0] is None
    assert read < 2 << 20


def test_checkpoints_are_judged_by_their_files(client: TestClient, runs: Path) -> None:
    folder = runs / "one-1" / "checkpoints"
    for name, size in (("step-00000010", 4), ("step-00000020", 5), ("step-00000030", 4)):
        (folder / name / "engine").mkdir(parents=True)
        (folder / name / "engine" / "a.pt").write_bytes(b"x" * size)
        text = json.dumps({"files": {"engine/a.pt": {"size_bytes": 4, "sha256": ""}}})
        (folder / name / "manifest.json").write_text(text if name != "step-00000030" else "{")
    (folder / ".step-00000040.partial").mkdir()
    (folder / "damaged-step-00000005").mkdir()
    (folder / "step-00000050").symlink_to("/")
    found = got(client, "/api/runs/one-1")["checkpoints"]
    assert [(one["step"], one["state"]) for one in found] == [
        *((5, "damaged"), (10, "whole"), (20, "damaged"), (30, "damaged"), (40, "partial"), (50, "damaged")),
    ]
    assert found[1]["bytes"] == 4
    assert "engine/a.pt" in found[2]["why"]


def test_events_samples_and_experts(client: TestClient, runs: Path) -> None:
    folder = runs / "one-1"
    (folder / "events.jsonl").write_text('{"kind": "attempt", "moe/tokens/x": 1}\ngarbage\n{"kind": "half"')
    found = got(client, "/api/runs/one-1/events")
    assert found["events"] == [{"kind": "attempt", "severity": "info", "words": "training on 1 rank"}]
    assert got(client, "/api/runs/one-1/events", cursor=found["cursor"])["events"] == []
    (folder / "samples.jsonl").write_text('{"step": 1, "prompt": "NaN", "text": "Infinity"}\n')
    assert got(client, "/api/runs/one-1/samples")["samples"] == [{"step": 1, "prompt": "NaN", "text": "Infinity"}]
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (5, 10):
            cells = {
                f"eval/validation/moe/tokens/layer_0{i}/expert_0{j}": step * (i + j) for i in (0, 1) for j in (0, 1)
            }
            file.write(json.dumps({"step": step, **cells}) + "\n")
    newest = got(client, "/api/runs/one-1/experts")
    assert (newest["layers"], newest["steps"], newest["table"]) == ([0, 1], [5, 10], [[0, 10], [10, 20]])
    assert got(client, "/api/runs/one-1/experts", step=5)["table"] == [[0, 5], [5, 10]]
    assert got(client, "/api/runs/two-1/experts") == {"layers": [], "steps": [], "table": []}


def test_sweeps(client: TestClient, runs: Path) -> None:
    folder = runs / "sweeps" / "lr-1"
    (folder / "trials").mkdir(parents=True)
    objective = {"metric": "train/loss", "mode": "min"}
    info = {"name": "lr", "state": "finished", "created": "2026-01-01", "sweep": {"objective": objective}, "trials": []}
    (folder / "sweep.json").write_text(json.dumps(info))
    for number, run in enumerate(("one-1", "three-1", "gone-1")):
        record = {"trial": number, "run": run, "parameters": {"optimizer.lr": 0.1 * number}}
        (folder / "trials" / f"00{number}.json").write_text(json.dumps(record))
    (folder / "trials" / "003.json").write_text("{")
    (runs / "sweeps" / "broken-1").mkdir()
    assert [(one["id"], one["state"]) for one in got(client, "/api/sweeps")] == [
        ("lr-1", "finished"),
        ("broken-1", "damaged"),
    ]
    listed = got(client, "/api/sweeps")[0]
    assert [listed[key] for key in ("trials", "finished", "metric", "best", "best_run")] == [
        3,
        2,
        "train/loss",
        1.0,
        "three-1",
    ]
    found = got(client, "/api/sweeps/lr-1")
    assert [(one["run"], one["metric"]) for one in found["trials"]] == [("one-1", 2.0), ("three-1", 1.0), (None, None)]
    assert (found["best"], found["parameters"], found["fit"]) == (1, ["optimizer.lr"], None)
    assert client.get("/api/sweeps/broken-1").status_code == 404


def test_export_and_report(client: TestClient) -> None:
    answer = client.get("/api/export.csv", params={"run": "one-1"})
    table = list(csv.DictReader(io.StringIO(answer.text)))
    assert table[1] == {"step": "2", "train/loss": "4.0", "train/tokens": "20.0"}
    report = client.get("/api/report", params={"runs": "one-1,two-1"}).text
    assert "zero.stage" not in report.partition("<h2>Curves")[0]
    assert "train.seed" in report
    assert not [
        link for link in ('src="http', 'href="http', "<link", "@import") if link in report.partition("plotly.js")[0]
    ]
    assert client.get("/api/report", params={"runs": "none"}).status_code == 404


def test_recipes(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    found = got(client, "/api/recipes")
    assert next(one for one in found if one["name"] == "gpt/quickstart")["description"].startswith("A small byte-level")
    assert "optimizer" in got(client, "/api/recipes/gpt/quickstart")["text"]
    body = {"name": "gpt/quickstart", "overrides": ["train.step=3"], "plan": False}
    (problem,) = client.post("/api/recipes/check", json=body).json()["problems"]
    assert (problem["path"], "did you mean 'steps'" in problem["message"]) == ("train.step", True)
    calls = []

    def apart(function: Any, *arguments: Any, what: str, timeout: float) -> dict[str, Any]:
        calls.append((function, *arguments))
        return {"fits": True}

    monkeypatch.setattr(isolated, "call", apart)
    for _ in range(2):
        answer = client.post("/api/recipes/check", json={"name": "gpt/quickstart", "overrides": ["train.steps=300"]})
        assert answer.json() == {"problems": [], "plan": {"fits": True}}
    assert calls == [(cluster.planned, "gpt/quickstart", ("train.steps=300",))], "it is remembered"


@pytest.mark.slow
def test_a_plan_is_made_in_a_process_of_its_own(client: TestClient) -> None:
    body = {"name": "gpt/quickstart", "overrides": ["train.steps=300", "train.minutes=null"]}
    answer = client.post("/api/recipes/check", json=body).json()
    assert (answer["problems"], answer["plan"]["steps"]) == ([], 300)


def test_no_cluster_is_a_state_and_not_an_error(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHARDYARD_HOME", str(tmp_path))
    until(lambda: "cluster up" in got(client, "/api/jobs")["why"], "the scheduler says what is missing")
    found = got(client, "/api/jobs")
    assert (found["available"], found["jobs"], found["nodes"]) == (False, [], [])
    assert "shardyard cluster up" in found["why"]


def test_a_call_that_fails_is_said_in_its_own_words(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    answer = client.post("/api/jobs", json={"recipe": "gpt/quickstart", "overrides": []})
    assert answer.status_code == 400
    assert "127.0.0.1:1" in answer.json()["error"]
    assert "Traceback" not in answer.json()["error"]


def test_a_call_that_hangs_or_dies_is_ended_and_said() -> None:
    with pytest.raises(isolated.CallTimeoutError, match="a nap has not ended after 0 s"):
        isolated.call(time.sleep, 3600, what="a nap", timeout=0.2)
    with pytest.raises(ShardyardError, match="the fall ended with exit code 7 and did not say why"):
        isolated.call(os._exit, 7, what="the fall", timeout=PATIENCE_SECONDS)
    with pytest.raises(ShardyardError, match=r"ValueError: .* This is a bug"):
        isolated.call(int, "x", what="a number", timeout=PATIENCE_SECONDS)
    assert isolated.call(int, "3", what="a number", timeout=PATIENCE_SECONDS) == 3


def test_a_call_has_the_variables_that_it_is_given_and_may_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_TEST_INHERITED", "there")
    given = {"SHARDYARD_TEST_GIVEN": "as well"}
    for name, expected in [("SHARDYARD_TEST_INHERITED", "there"), ("SHARDYARD_TEST_GIVEN", "as well")]:
        found = isolated.call(os.getenv, name, what="a variable", timeout=PATIENCE_SECONDS, environment=given)
        assert found == expected
    assert isolated.call(print, "noise", what="a line", timeout=PATIENCE_SECONDS) is None


def test_a_run_that_is_lost_is_not_stopped(client: TestClient, runs: Path) -> None:
    RunFolder(runs / "one-1").update(state="running", driver={**this_process(), "pid": 2**22 + 1})
    answer = client.post("/api/jobs/one-1/stop", json={})
    assert (answer.status_code, "`shardyard resume" in answer.json()["error"]) == (400, True)


def test_resume_reports_what_fails_at_once(client: TestClient) -> None:
    answer = client.post("/api/runs/gone-1/resume", json={})
    assert (answer.status_code, answer.json()["error"]) == (404, "There is no run 'gone-1'.")


def test_the_stream_tells_only_what_is_new(runs: Path, tmp_path: Path) -> None:
    index = index_of(runs, tmp_path / "cache")
    state = State(index, Gate("t" * 20, frozenset(), 1))
    watch = Watch(["train/loss"], "step", {"one-1": 4, "two-1": 0}, index.version, ("one-1", "driver"))
    (first,) = [_parsed(message) for message in _news(state, watch)]
    assert (first[0], first[1]["lines"][-1][1]) == ("log", "line 1000")
    assert _news(state, watch) == []
    add_lines(runs / "one-1", [1.5], first=5)
    index.catch_up()
    (rows, series) = [_parsed(message) for message in _news(state, watch)]
    assert [row["id"] for row in rows[1]["runs"]] == ["one-1"]
    assert series == ("series", {"series": [
        {"run": "one-1", "metric": "train/loss", "x": [5.0], "y": [1.5], "cursor": 5, "replace": False}
    ]})  # fmt: skip
    (runs / "one-1" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 7.0}\n')
    (runs / "three-1").rename(tmp_path / "away")
    index.catch_up()
    (rows, series) = [_parsed(message) for message in _news(state, watch)]
    assert rows[1]["gone"] == ["three-1"]
    assert (series[1]["series"][0]["replace"], series[1]["series"][0]["y"]) == (True, [7.0])
    index.stop()


def _parsed(message: bytes) -> tuple[str, Any]:
    lines = dict(line.split(": ", 1) for line in message.decode().strip().split("\n"))
    return lines["event"], json.loads(lines["data"])


def test_the_stream_over_http(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The application itself is asked, because the client of the tests waits for the end of an answer."""
    monkeypatch.setattr("shardyard.dashboard.index.index.ENDED_PAUSES", (0.05, 0.1))
    monkeypatch.setattr("shardyard.dashboard.web.stream.PERIOD_SECONDS", 0.05)
    with served(runs, tmp_path / "cache") as client:
        _follow_the_stream(client, runs)


def _follow_the_stream(client: TestClient, runs: Path) -> None:
    messages: list[dict[str, Any]] = []
    scope = {
        "type": "http", "method": "GET", "path": "/api/stream", "raw_path": b"/api/stream", "headers": [
            (b"host", b"127.0.0.1"), (b"authorization", client.headers["authorization"].encode())],
        "query_string": b"runs=one-1&metrics=train/loss&cursors=one-1:4", "http_version": "1.1", "scheme": "http",
        "server": ("127.0.0.1", 8270), "client": ("127.0.0.1", 1), "root_path": "", "asgi": {"version": "3.0"},
    }  # fmt: skip

    async def follow() -> None:
        async def send(message: Any) -> None:
            messages.append(message)
            if b"event: series" in message.get("body", b""):
                raise ConnectionResetError

        async def receive() -> dict[str, Any]:
            await anyio.sleep_forever()
            return {"type": "http.disconnect"}

        with anyio.fail_after(PATIENCE_SECONDS):
            try:
                await client.app(scope, receive, send)  # type: ignore[arg-type]
            except* OSError:
                pass

    assert client.portal is not None
    add_lines(runs / "one-1", [0.5], first=5)
    client.portal.call(follow)
    body = b"".join(message.get("body", b"") for message in messages)
    assert b'"y":[0.5]' in body


def test_a_runs_folder_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be read"):
        check_folder(tmp_path / "file")
    check_folder(tmp_path / "not-yet")
