"""Answers that Ray's Jobs API may give, and what a person reads then."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from typing import Any

import pytest

from shardyard.errors import ShardyardError
from shardyard.launch.schedulers.ray.api import JobsApi, Target


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
        (401, b"Unauthorized: Missing authentication token", "asks for a token: set RAY_AUTH_TOKEN_PATH"),
        (403, b"Forbidden: Invalid authentication token", "does not take this token"),
        (200, b"<html>hello</html>", "answers, but not as Ray's Jobs API"),
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
    with pytest.raises(ShardyardError, match="does not take this token"):
        _api(server).has_package("a.zip")
