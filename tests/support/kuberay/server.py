"""A fake Kubernetes API server for KubeRay jobs: it stores objects, checks them, and refuses requests on demand."""

from __future__ import annotations

import contextlib
import itertools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.kuberay.schema import schema_problems

TOKEN = "a-token-of-the-test"
Data = dict[str, Any]


@dataclass
class Cluster:
    """The objects of the server, by (kind, namespace, name), and its behaviour.

    refuse: (method, kind) → status that it answers with; hang: the same → it never answers; cut: the same → it carries
    out what it was asked, and closes the connection without a word.
    """

    objects: dict[tuple[str, str, str], Data] = field(default_factory=dict)
    namespaces: set[str] = field(default_factory=lambda: {"default", "research"})
    logs: dict[str, list[str]] = field(default_factory=dict)
    refuse: dict[tuple[str, str], int] = field(default_factory=dict)
    hang: set[tuple[str, str]] = field(default_factory=set)
    cut: set[tuple[str, str]] = field(default_factory=set)
    has_kuberay: bool = True
    knows_tokens_of_ray: bool = True
    seen: list[tuple[str, str]] = field(default_factory=list)
    uids: Iterator[int] = field(default_factory=itertools.count)
    hanging: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def names(self, kind: str) -> list[str]:
        return sorted(name for of_kind, _, name in self.objects if of_kind == kind)

    def remove(self, kind: str, namespace: str, name: str) -> None:
        """Remove an object with everything that it owns, like the garbage collector."""
        gone = self.objects.pop((kind, namespace, name))
        for key, item in list(self.objects.items()):
            owners = item["metadata"].get("ownerReferences", [])
            if any(owner["uid"] == gone["metadata"]["uid"] for owner in owners):
                self.remove(*key)


class Refusal(Exception):  # noqa: N818  an answer, not a mistake
    def __init__(self, code: int, message: str, details: Data | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.body = {"kind": "Status", "status": "Failure", "message": message, "code": code, "details": details or {}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: Cluster

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_DELETE(self) -> None:
        self._answer("DELETE")

    def _answer(self, method: str) -> None:
        url = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        parts = url.path.strip("/").split("/")
        try:
            kind, namespace, rest = self._route(parts)
            self.cluster.seen.append(self._as_a_role_says_it(method, kind, rest))
            self._behave(method, kind)
            found = self._carry_out(method, kind, namespace, rest, query, json.loads(body) if body else {})
        except Refusal as refusal:
            self._send(refusal.code, refusal.body)
        except ConnectionAbortedError:
            self.close_connection = True
        except LookupError:
            self._send(404, "404 page not found\n")
        else:
            if (method, kind) in self.cluster.cut:
                self.close_connection = True
                return
            self._send(201 if method == "POST" else 200, found)

    def _route(self, parts: list[str]) -> tuple[str, str, list[str]]:
        """Kind, namespace, and what follows."""
        after = parts[2:] if parts[0] == "api" else parts[3:]
        if parts[0] == "apis" and not (parts[1] == "ray.io" and self.cluster.has_kuberay) and "kueue" not in parts[1]:
            raise LookupError
        return after[2], after[1], after[3:]

    def _as_a_role_says_it(self, method: str, kind: str, rest: list[str]) -> tuple[str, str]:
        verbs = {"POST": "create", "DELETE": "delete", "GET": "get" if rest else "list"}
        return verbs[method], "/".join([kind, *rest[1:]])

    def _behave(self, method: str, kind: str) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Unauthorized")
        if (method, kind) in self.cluster.hang:
            self.cluster.hanging.set()
            self.cluster.over.wait(60)
            raise ConnectionAbortedError
        if (method, kind) in self.cluster.refuse:
            code = self.cluster.refuse[method, kind]
            messages = {403: f'{kind} is forbidden: User "person" cannot {method.lower()} resource "{kind}"'}
            raise Refusal(code, messages.get(code, "etcdserver: request timed out"), {"kind": kind})

    def _carry_out(
        self, method: str, kind: str, namespace: str, rest: list[str], query: dict[str, str], body: Data
    ) -> Any:
        if method == "POST":
            return self._create(kind, namespace, query, body)
        if not rest:
            return self._list(kind, namespace, query)
        key = (kind, namespace, rest[0])
        if key not in self.cluster.objects:
            raise Refusal(404, f'{kind} "{rest[0]}" not found', {"name": rest[0], "kind": kind})
        if rest[1:] == ["log"]:
            lines = self.cluster.logs[rest[0]]
            kept = lines[len(lines) - min(int(query["tailLines"]), len(lines)) :] if "tailLines" in query else lines
            return "".join(f"{line}\n" for line in kept)
        if method == "DELETE":
            self.cluster.remove(*key)
            return {"kind": "Status", "status": "Success"}
        return self.cluster.objects[key]

    def _create(self, kind: str, namespace: str, query: dict[str, str], body: Data) -> Data:
        name = body["metadata"]["name"]
        if namespace not in self.cluster.namespaces:
            raise Refusal(404, f'namespaces "{namespace}" not found', {"name": namespace, "kind": "namespaces"})
        if (kind, namespace, name) in self.cluster.objects:
            raise Refusal(409, f'{kind} "{name}" already exists', {"name": name, "kind": kind})
        if kind == "rayjobs":
            if not self.cluster.knows_tokens_of_ray and query.get("fieldValidation") == "Strict":
                raise Refusal(400, 'strict decoding error: unknown field "spec.rayClusterSpec.authOptions"')
            problems = schema_problems(body)
            if problems:
                raise Refusal(422, f"RayJob.ray.io is invalid: {problems}")
        uid = f"uid-{next(self.cluster.uids)}"
        stored = {
            **body,
            "metadata": {**body["metadata"], "uid": uid, "creationTimestamp": f"2026-01-02T03:04:{uid[4:]:>02}Z"},
        }
        self.cluster.objects[kind, namespace, name] = stored
        return stored

    def _list(self, kind: str, namespace: str, query: dict[str, str]) -> Data:
        wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
        found = [
            item
            for (of_kind, of_namespace, _), item in self.cluster.objects.items()
            if (of_kind, of_namespace) == (kind, namespace)
            and wanted.items() <= item["metadata"].get("labels", {}).items()
        ]
        # Pages of two, whatever the requested limit.
        begin = int(query.get("continue") or 0)
        more = {"continue": str(begin + 2)} if "limit" in query and len(found) > begin + 2 else {}
        return {"metadata": more, "items": found[begin : begin + 2] if "limit" in query else found}

    def _send(self, code: int, body: Any) -> None:
        plain = isinstance(body, str)
        content = (body if plain else json.dumps(body)).encode()
        self.send_response(code)
        self.send_header("Content-Type", "text/plain" if plain else "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextlib.contextmanager
def kube_server(folder: Path) -> Iterator[tuple[Cluster, Path]]:
    """A server on a free port of the loopback interface, and the kubeconfig for it."""
    cluster = Cluster()
    handler = type("Handler", (_Handler,), {"cluster": cluster})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    config = folder / "kubeconfig"
    write_kubeconfig(config, f"http://127.0.0.1:{server.server_port}")
    try:
        yield cluster, config
    finally:
        cluster.over.set()
        server.shutdown()
        server.server_close()


def write_kubeconfig(path: Path, server: str, token: str = TOKEN) -> None:
    """A kubeconfig with one context, `test`."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "test", "context": {"cluster": "c", "user": "u"}}],
    }
    path.write_text(json.dumps(config), encoding="utf-8")
    path.chmod(0o600)
