"""Jobs from the dashboard on a real Ray cluster: submitted, waiting, stopped, refused; a browser resumes one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from support.cluster import ray_head
from support.dash_cases import CSRF, served
from support.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TINY = [
    *("model.config.n_layer=1", "model.config.n_head=2", "model.config.n_embd=32", "data.sequence_length=64"),
    *("train.global_batch=8", "train.threads=1", "evaluate.every=100000", "sample.prompts=[]", "schedule.warmup=1"),
    *("train.minutes=", "tracking.wandb.mode=disabled"),
]
SHORT = [*TINY, "train.steps=4", "cluster.workers=1"]
ENDLESS = [*TINY, "train.steps=100000", "checkpoint.every=100000", "cluster.workers=2"]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """The dashboard beside a Ray head that has a token; commands that it calls find both in their environment."""
    folder = tmp_path_factory.mktemp("dash-jobs")
    before = dict(os.environ)
    with ray_head(folder, dashboard=True) as environment:
        os.environ.update({**environment, "SHARDYARD_HOME": str(folder)})
        try:
            (folder / "runs").mkdir()
            with served(folder / "runs", folder / "cache") as client:
                yield client
        finally:
            os.environ.clear()
            os.environ.update(before)


def jobs(client: TestClient) -> dict[str, dict[str, Any]]:
    answer = client.get("/api/jobs").json()
    assert answer["available"], answer["why"]
    return {job["id"]: job for job in answer["jobs"]}


def submitted(client: TestClient, overrides: list[str]) -> str:
    answer = client.post("/api/jobs", json={"recipe": "gpt/quickstart", "overrides": overrides})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def state_of(client: TestClient, run: str) -> str:
    answer = client.get(f"/api/runs/{run}")
    return str(answer.json()["summary"]["state"]) if answer.status_code == 200 else ""


def test_a_job_is_submitted_waits_and_is_stopped(client: TestClient) -> None:
    until(lambda: client.get("/api/jobs").json()["available"], "the cluster answers")
    nodes = client.get("/api/jobs").json()["nodes"]
    assert [node["total"]["CPU"] for node in nodes] == [2.0]
    assert (nodes[0]["up"], nodes[0]["head"], nodes[0]["scheduler"]) == (True, True, "ray")

    first = submitted(client, ENDLESS)
    until(lambda: jobs(client)[first]["doing"].startswith("step "), "the first job trains")
    job = jobs(client)[first]
    assert (job["state"], job["ended"], job["run"]) == ("RUNNING", False, first)
    assert job["recipe"] == "gpt/quickstart"
    assert job["submitted"] > time.time() - 600
    assert first in {row["id"] for row in client.get("/api/runs", params={"query": "state = running"}).json()["runs"]}

    until(lambda: (client.get("/api/jobs").json()["nodes"][0]["free"] or {}).get("CPU") == 0, "all cores are reserved")
    assert client.get("/api/jobs").json()["nodes"][0]["cpu_percent"] > 0

    second = submitted(client, SHORT)
    until(lambda: jobs(client)[second]["waiting"], "the second job waits")
    assert "needs 1 CPU core on 1 node; 0 free" in jobs(client)[second]["waiting"]

    assert client.post(f"/api/jobs/{first}/stop", json={}).status_code == 200
    until(lambda: jobs(client)[first]["ended"], "the first job ends")
    until(lambda: state_of(client, first) == "interrupted", "its run has ended with a checkpoint")
    checkpoints = client.get(f"/api/runs/{first}").json()["checkpoints"]
    assert [found["state"] for found in checkpoints] == ["whole"]
    until(lambda: jobs(client)[second]["ended"], "the second job ends")
    assert jobs(client)[second]["state"] == "SUCCEEDED"
    until(lambda: state_of(client, second) == "finished", "its run has finished")


def test_what_is_refused_leaves_nothing_behind(client: TestClient) -> None:
    before = jobs(client).keys()
    runs = client.get("/api/runs").json()["total"]
    wrong = client.post("/api/jobs", json={"recipe": "gpt/quickstart", "overrides": ["train.stepz=3"]})
    assert wrong.status_code == 400
    assert "did you mean 'steps'" in wrong.json()["error"]
    large = client.post("/api/jobs", json={"recipe": "gpt/quickstart", "overrides": ["cluster.workers=4", *TINY]})
    assert large.status_code == 400
    assert "CPU" in large.json()["error"]
    assert client.post("/api/jobs", json={"recipe": "../../etc/passwd", "overrides": []}).status_code == 404
    assert client.post("/api/jobs/nothing/stop", json={}).status_code == 404
    assert client.post("/api/runs/nothing/resume", json={}).status_code == 404
    foreign = client.post("/api/jobs", json={"recipe": "gpt/quickstart"}, headers={CSRF: "guessed"})
    assert foreign.status_code == 403
    assert jobs(client).keys() == before
    assert client.get("/api/runs").json()["total"] == runs


def test_a_cluster_that_does_not_let_one_in(
    client: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    with served(tmp_path, tmp_path / "cache") as other:
        until(lambda: "token" in other.get("/api/jobs").json()["why"], "the cluster refuses the token")
        answer = other.get("/api/jobs").json()
        assert answer["available"] is False
        assert answer["jobs"] == []
        assert "0" * 64 not in answer["why"]
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    with served(tmp_path, tmp_path / "cache-2") as other:
        until(lambda: "127.0.0.1:9" in other.get("/api/jobs").json()["why"], "nobody answers")
        assert other.get("/api/jobs").json()["available"] is False
