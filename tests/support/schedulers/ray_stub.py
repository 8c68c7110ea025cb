"""A stub of Ray's job server: it stores submitted jobs, and the test controls their state changes."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any
from urllib.parse import unquote, urlsplit

NODE = {"node_id": "n1", "node_ip": "127.0.0.1", "state": "ALIVE", "labels": {}, "resources_total": {"CPU": 8.0}}


@dataclass
class RayStub:
    """The state of the server: jobs by id, and their logs."""

    url: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)

    def submit(self, body: dict[str, Any]) -> dict[str, Any]:
        """A job that waits."""
        found = {"type": "SUBMISSION", "status": "PENDING", "start_time": int(time.time() * 1000), **body}
        self.jobs[body["submission_id"]] = found
        return {"submission_id": body["submission_id"]}

    def end(self, job: str, status: str, code: int | None = None) -> None:
        """End a job; Ray keeps no exit code of stopped jobs."""
        self.jobs[job] |= {"status": status, "driver_exit_code": code, "end_time": int(time.time() * 1000)}

    def stop(self, job: str) -> dict[str, Any]:
        """At once, unless it has ended."""
        running = self.jobs[job]["status"] in ("PENDING", "RUNNING")
        if running:
            self.end(job, "STOPPED")
        return {"stopped": running}


class _Handler(BaseHTTPRequestHandler):
    stub: RayStub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        try:
            content = json.dumps(self._found(method, parts[1:], body)).encode()
            self.send_response(200)
        except KeyError as error:
            content = f"Job {error} does not exist".encode()
            self.send_response(404)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _found(self, method: str, parts: list[str], body: bytes) -> Any:
        stub = self.stub
        match method, parts:
            case "GET", ["version"]:
                return {"ray_version": version("ray")}
            case "GET", ["jobs"]:
                return list(stub.jobs.values())
            case "POST", ["jobs"]:
                return stub.submit(json.loads(body))
            case "GET", ["jobs", job]:
                return stub.jobs[job]
            case "GET", ["jobs", job, "logs"]:
                return {"logs": stub.logs.get(stub.jobs[job]["submission_id"], "")}
            case "POST", ["jobs", job, "stop"]:
                return stub.stop(job)
            case "GET", ["v0", "nodes"]:
                return {"data": {"result": {"result": [NODE]}}}
            case "PUT", ["packages", *_]:
                return {}
        raise KeyError(parts[-1])


@contextmanager
def ray_stub() -> Iterator[RayStub]:
    """A server on a free port of loopback."""
    stub = RayStub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": stub}))
    server.daemon_threads = True
    stub.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
