"""An unreliable web server on loopback: it serves files, with ranges, and fails a seeded share of all requests."""

from __future__ import annotations

import hashlib
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

COMMIT = "a" * 40
Running = TypeVar("Running", bound="Server")
FAULTS = ("500", "502", "503", "429", "drop", "cut")


class Server(ThreadingHTTPServer):
    """`faults`: share of the requests that fail; `kinds`: how; `met`: how often each kind was met, and good answers."""

    daemon_threads = True

    def __init__(
        self, contents: dict[str, bytes], *, seed: int = 0, ranges: bool = True, handler: type[Handler] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.contents, self.ranges = contents, ranges
        self.faults, self.kinds, self.retry_after = 0.0, FAULTS, "0"
        self.met: Counter[str] = Counter()
        self._random, self._lock = random.Random(seed), threading.Lock()

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"

    def fate(self) -> str:
        """The fate of the next request."""
        with self._lock:
            found = self._random.choice(self.kinds) if self._random.random() < self.faults else "good"
            self.met[found] += 1
        return found

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore disconnected clients, which are expected."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        fate = self.server.fate()
        if fate == "drop":
            # A reset instead of an answer.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        elif fate.isdigit():
            self.send_response(int(fate))
            if fate in ("429", "503"):
                self.send_header("Retry-After", self.server.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self._file(body=body, cut=fate == "cut" and body)

    def _file(self, *, body: bool, cut: bool) -> None:
        data = self.server.contents.get(self.path.partition("?")[0].lstrip("/"))
        if data is None:
            self.send_content(b"", body=body, cut=False, status=404, headers={"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self.send_content(data, body=body, cut=cut, status=200, headers=headers)

    def send_content(self, data: bytes, *, body: bool, cut: bool, status: int, headers: Mapping[str, str]) -> None:
        """Send content, the range of it that was asked for, or half of that if it is `cut`."""
        ranges = self.server.ranges and status == HTTPStatus.OK
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")) if ranges else None
        part = data
        if asked:
            first, last = int(asked[1]), int(asked[2] or len(data) - 1)
            part = data[first : last + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
        else:
            self.send_response(status)
        if ranges:
            self.send_header("Accept-Ranges", "bytes")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if body:
            self.wfile.write(part[: len(part) // 2] if cut else part)
        if cut:
            self.wfile.flush()
            self.close_connection = True


@contextmanager
def served(server: Running) -> Iterator[Running]:
    """A server, while the `with` block runs."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def serving(contents: dict[str, bytes], **options: Any) -> Iterator[Server]:
    """A server of these files, while the `with` block runs."""
    with served(Server(contents, **options)) as server:
        yield server
