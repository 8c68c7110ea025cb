"""A small hub on this machine: the endpoints that huggingface_hub uses to create a repository and to commit to it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_" + "theTokenOfThisTestServer0"


@dataclass
class Repository:
    """What a repository holds. `branches` counts the commits on each."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    branches: dict[str, int] = field(default_factory=lambda: {"main": 0})
    message: str = ""


@dataclass
class Hub:
    """A running hub: its address, its repositories by name, and the requests so far as `METHOD path`."""

    url: str
    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that accepts TOKEN, for as long as the context lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    found = Hub(f"http://127.0.0.1:{server.server_address[1]}")
    server.hub = found  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def hub(self) -> Hub:
        found: Hub = self.server.hub  # type: ignore[attr-defined]
        return found

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        """Creating, validating, announcing and committing."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self._noted()
        if path == "/api/validate-yaml":
            return self._answer({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer({"error": "Invalid username or password."}, 401)
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        parts = path.split("/")
        if path.endswith("/info/lfs/objects/batch"):
            return self._batch("/".join(parts[1:3]).removesuffix(".git"), json.loads(body))
        repository = self.hub.repositories.get("/".join(parts[3:5]))
        if repository is None:
            return self._answer({"error": "Repository not found"}, 404)
        kind, revision = parts[5], parts[6]
        if kind == "branch":
            repository.branches.setdefault(revision, 0)
            return self._answer({})
        if kind == "preupload":
            return self._announce(json.loads(body)["files"])
        return self._commit("/".join(parts[3:5]), revision, [json.loads(line) for line in body.splitlines()])

    def do_PUT(self) -> None:
        """The contents of a large file."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.large[self._noted().rpartition("/")[2]] = body
        self._answer({})

    def do_GET(self) -> None:
        """What huggingface_hub asks about a repository before it uploads."""
        name = "/".join(self._noted().split("/")[3:5])
        if name not in self.hub.repositories:
            return self._answer({"error": "Repository not found"}, 404)
        return self._answer({"id": name, "modelId": name, "sha": "0" * 40, "siblings": [], "tags": []})

    def _noted(self) -> str:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        return path

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._answer({"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}, 409)
        self.hub.repositories[name] = Repository(asked.get("visibility") == "private" or bool(asked.get("private")))
        return self._answer({"url": f"{self.hub.url}/{name}"})

    def _announce(self, files: list[dict[str, Any]]) -> None:
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                "shouldIgnore": False,
            }
            for file in files
        ]
        self._answer({"files": modes})

    def _batch(self, name: str, asked: dict[str, Any]) -> None:
        where = f"{self.hub.url}/large/{name}"
        objects = [
            {**one, "authenticated": True, "actions": {"upload": {"href": f"{where}/{one['oid']}", "header": {}}}}
            for one in asked["objects"]
        ]
        self._answer({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, revision: str, lines: list[dict[str, Any]]) -> None:
        repository = self.hub.repositories[name]
        if revision not in repository.branches:
            return self._answer({"error": "Invalid rev id"}, 404)
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repository.message = value["summary"]
            elif line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.large[value["oid"]]
        repository.branches[revision] += 1
        oid = "1" * 40
        return self._answer({"commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid, "hookOutput": ""})

    def _answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
