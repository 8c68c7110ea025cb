"""Answers that Ray's Jobs API may give, and what a person reads then."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.schedulers.base import JobHandle, JobNotFoundError
from shardyard.launch.schedulers.ray.api import JobsApi, Target, target
from shardyard.launch.schedulers.ray.scheduler import RayScheduler

JOB = {"type": "SUBMISSION", "submission_id": "gpt-1", "status": "STOPPED", "start_time": 1000, "end_time": 3000}


class Server(HTTPServer):
    """Answers every request with the same status and body, and keeps what it was sent."""

    status = 200
    body = b"{}"
    seen: list[tuple[str, str, str | None]]


class Handler(BaseHTTPRequestHandler):
    """The answers of `Server`."""

    def _answer(self) -> None:
        server: Any = self.server
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        self.send_response(server.status)
        self.send_header("Content-Length", str(len(server.body)))
        self.end_headers()
        self.wfile.write(server.body)

    do_GET = do_POST = do_PUT = _answer  # noqa: N815  the names that http.server asks for

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(("127.0.0.1", 0), Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def _api(server: Server, token: str | None = None) -> JobsApi:
    return JobsApi(Target(f"http://127.0.0.1:{server.server_port}", token))


def test_the_same_version_passes_and_the_token_goes_along(server: Server) -> None:
    server.body = json.dumps({"ray_version": version("ray")}).encode()
    _api(server, "abc").check_version()
    assert server.seen == [("GET", "/api/version", "Bearer abc")]


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (200, json.dumps({"ray_version": "2.9.3"}).encode(), r"runs Ray 2\.9\.3, here is Ray .*pip install"),
        (401, b"Unauthorized: Missing authentication token", "requires a token: set RAY_AUTH_TOKEN_PATH"),
        (403, b"Forbidden: Invalid authentication token", "rejects this token"),
        (200, b"<html>hello</html>", "answers, but is not Ray's Jobs API"),
        (500, b"Traceback\nValueError: no room left", "refuses: ValueError: no room left"),
    ],
)
def test_each_refusal_is_one_paragraph(server: Server, status: int, body: bytes, message: str) -> None:
    server.status, server.body = status, body
    with pytest.raises(ShardyardError, match=message) as caught:
        _api(server, "a-secret-token").check_version()
    assert "\n" not in str(caught.value)
    assert "a-secret-token" not in str(caught.value)


def test_nobody_answers(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(ShardyardError, match=r"does not answer: Connection refused.*forward its port"):
        _api(server).check_version()


def test_only_submitted_jobs_are_listed_in_the_order_of_submission(server: Server) -> None:
    jobs = [
        {"type": "SUBMISSION", "submission_id": "b", "start_time": 2},
        {"type": "DRIVER", "submission_id": None, "start_time": 0},
        {"type": "SUBMISSION", "submission_id": "a", "start_time": 1},
    ]
    server.body = json.dumps(jobs).encode()
    assert [job["submission_id"] for job in _api(server).jobs()] == ["a", "b"]


def test_packages_that_are_there_and_not_there(server: Server) -> None:
    assert _api(server).has_package("a.zip") is True
    server.status = 404
    assert _api(server).has_package("a.zip") is False
    server.status = 403
    with pytest.raises(ShardyardError, match="rejects this token"):
        _api(server).has_package("a.zip")


def test_jobs_of_others_are_left_to_ray(server: Server) -> None:
    scheduler = RayScheduler()
    scheduler._api = _api(server)
    theirs: dict[str, Any] = {
        "type": "SUBMISSION",
        "submission_id": "raysubmit_1",
        "metadata": None,
        "status": "RUNNING",
    }
    ours: dict[str, Any] = {
        **JOB,
        "metadata": {"shardyard_run": "gpt-1", "job_name": "first", "shardyard_tags": "a,b", "shardyard_cpus": "4"},
    }
    server.body = json.dumps([theirs, ours]).encode()
    assert scheduler.list() == []
    (job,) = scheduler.list(ended=True)
    assert (job.job.id, job.name, job.state, job.submitted, job.ended_at) == ("gpt-1", "first", "STOPPED", 1.0, 3.0)
    assert (job.tags, job.resources.cpus, job.exit_code) == (("a", "b"), 4.0, None)
    server.body = json.dumps(theirs).encode()
    with pytest.raises(JobNotFoundError, match=r"raysubmit_1 at .* is a Ray job that Shardyard did not submit"):
        scheduler.status(JobHandle("ray", "raysubmit_1"))
    server.status = 404
    with pytest.raises(JobNotFoundError, match="there is no job 'none' at http"):
        scheduler.status(JobHandle("ray", "none"))


def test_no_cluster_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SHARDYARD_HOME", str(tmp_path))
    with pytest.raises(UsageError, match="--address http://HEAD:8265"):
        target(None)
    with pytest.raises(UsageError, match="is not an address of Ray's Jobs API"):
        target("ftp://somewhere")


def test_the_address_that_is_given_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDYARD_HOME", str(tmp_path))
    monkeypatch.setenv("RAY_ADDRESS", "http://second:8265")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    assert target("http://first:8265/").url == "http://first:8265"
    assert target(None).url == "http://second:8265"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://third:8265")
    assert target(None).url == "http://third:8265"
    assert target(None).token == "secret"
