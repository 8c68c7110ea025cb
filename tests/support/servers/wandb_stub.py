"""A stub of W&B's API on loopback for the requests of `wandb-core` during an upload; it stores received data.

Supports only uploading and resuming: the viewer, the lookup and creation of a run, and its stream of history.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "5" * 40
ENTITY = "me"


@dataclass
class StoredRun:
    """A stored run. `history` holds its lines by position, `starts` counts starts and resumes."""

    config: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    history: dict[int, dict[str, Any]] = field(default_factory=dict)
    exit_code: int | None = None
    starts: int = 0

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [self.history[position] for position in sorted(self.history)]

    @property
    def steps(self) -> list[int]:
        return [int(line["_step"]) for line in self.lines]


@dataclass
class WandbStub:
    """`runs` by (entity, project, id). `most_lines`: history lines accepted before it refuses; `refuse_login`: reject
    all logins. `asked` holds the names of the operations, in order."""

    runs: dict[tuple[str, str, str], StoredRun] = field(default_factory=dict)
    most_lines: int | None = None
    refuse_login: bool = False
    asked: list[str] = field(default_factory=list)
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, name: str, project: str = "p", entity: str = ENTITY) -> StoredRun:
        return self.runs[entity, project, name]

    def graphql(self, name: str, variables: dict[str, Any]) -> dict[str, Any]:
        match name:
            case "Viewer":
                teams: dict[str, Any] = {"edges": []}
                return {"viewer": {"id": "1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": teams}}
            case "RunResumeStatus":
                return {"model": self._resume(variables)}
            case "UpsertBucket":
                return {"upsertBucket": self._upsert(variables)}
            case "CreateRunFiles":
                files = [{"name": file, "uploadUrl": f"{self.url}/storage/{file}"} for file in variables["files"]]
                return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        return {}

    def _resume(self, variables: dict[str, Any]) -> dict[str, Any] | None:
        entity, project = variables.get("entity") or ENTITY, variables["project"]
        found = self.runs.get((entity, project, variables["name"]))
        if found is None:
            return None
        tail = [json.dumps(line) for line in found.lines[-1:]]
        bucket = {
            "id": "x",
            "name": variables["name"],
            "summaryMetrics": json.dumps(found.lines[-1] if found.lines else {}),
            "displayName": found.fields.get("displayName"),
            "logLineCount": 0,
            "historyLineCount": len(found.history),
            "eventsLineCount": 0,
            "historyTail": json.dumps(tail),
            "eventsTail": "[]",
            "config": json.dumps(found.config),
            "tags": found.fields.get("tags") or [],
            "notes": None,
            "wandbConfig": json.dumps({"t": {}}),
        }
        return {"id": "p", "name": project, "entity": {"id": "e", "name": entity}, "bucket": bucket}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        entity, project = variables.get("entity") or ENTITY, variables["project"]
        place = (entity, project, variables["name"])
        inserted = place not in self.runs
        stored = self.runs.setdefault(place, StoredRun())
        stored.config |= json.loads(variables.get("config") or "{}")
        stored.fields |= {name: value for name, value in variables.items() if value is not None and name != "config"}
        stored.starts += variables.get("host") is not None
        bucket = {
            "id": "x",
            "name": variables["name"],
            "displayName": stored.fields.get("displayName"),
            "description": None,
            "config": json.dumps(stored.config),
            "sweepName": None,
            "historyLineCount": len(stored.history),
            "project": {"id": "p", "name": project, "entity": {"id": "e", "name": entity}},
        }
        return {"bucket": bucket, "inserted": inserted}

    def stream(self, place: tuple[str, str, str], body: dict[str, Any]) -> bool:
        """Store lines; False if they are refused."""
        stored = self.runs[place]
        chunk = (body.get("files") or {}).get("wandb-history.jsonl")
        for number, line in enumerate(chunk["content"] if chunk else [], chunk["offset"] if chunk else 0):
            if self.most_lines is not None and len(stored.history) >= self.most_lines:
                return False
            stored.history[number] = json.loads(line)
        if body.get("complete"):
            stored.exit_code = body.get("exitcode")
        return True


@contextmanager
def wandb_stub() -> Iterator[WandbStub]:
    """A server that answers until the block ends."""
    stub = WandbStub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    stub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def _handler(stub: WandbStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer(200, {})

        def do_PUT(self) -> None:
            self._body()
            self._answer(200, {})

        def do_POST(self) -> None:
            body = self._body()
            if self.path == "/graphql":
                asked = json.loads(body)
                name = asked.get("operationName") or ""
                with stub.lock:
                    stub.asked.append(name)
                    if stub.refuse_login:
                        self._answer(401, {"errors": [{"message": "user is not logged in"}]})
                    else:
                        self._answer(200, {"data": stub.graphql(name, asked.get("variables") or {})})
                return
            parts = self.path.strip("/").split("/")
            if parts[0] == "files" and parts[-1] == "file_stream":
                with stub.lock:
                    taken = stub.stream((parts[1], parts[2], parts[3]), json.loads(body))
                self._answer(200 if taken else 400, {"exitcode": None, "limits": {}} if taken else {"error": "full"})
                return
            self._answer(200, {})

        def _body(self) -> bytes:
            data = self.rfile.read(int(self.headers.get("content-length") or 0))
            return gzip.decompress(data) if self.headers.get("content-encoding") == "gzip" else data

        def _answer(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    return Handler
