"""As much of Azure's Blob Storage on loopback as adlfs uses, by the REST interface of version 2025-05-05.

Containers and blobs are kept in memory. Signatures are not checked. A blob of blocks appears when its list of blocks is
put, as a whole.
"""

from __future__ import annotations

import base64
import hashlib
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, unquote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server

ACCOUNT, CONTAINER = "account", "bucket"
KEY = base64.b64encode(b"key").decode()
_DATE = "Mon, 30 Nov 2026 00:00:00 GMT"
_Answer = tuple[str, Mapping[str, str], bytes]


class Blobs:
    """A WSGI application. blobs: by container and name; blocks: of blobs that are not put together yet."""

    def __init__(self) -> None:
        self.blobs: dict[str, dict[str, bytes]] = {CONTAINER: {}}
        self._blocks: dict[tuple[str, str], dict[str, bytes]] = {}
        self._lock = threading.Lock()

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        asked = {key: values[0] for key, values in parse_qs(environ["QUERY_STRING"], keep_blank_values=True).items()}
        _, account, container, *rest = unquote(environ["PATH_INFO"]).split("/", 3)
        assert account == ACCOUNT
        method, name = environ["REQUEST_METHOD"], rest[0] if rest else ""
        with self._lock:
            status, headers, answer = self._answer(method, container, name, asked, environ, body)
        common = {"x-ms-version": "2025-05-05", "x-ms-request-id": "1", "Content-Type": "application/xml"}
        if method == "HEAD":
            answer = b""
        else:
            headers = {**headers, "Content-Length": str(len(answer))}
        start_response(status, list({**common, **headers}.items()))
        return [answer]

    def _answer(
        self, method: str, container: str, name: str, asked: Mapping[str, str], environ: Any, body: bytes
    ) -> _Answer:
        blobs = self.blobs.get(container)
        if blobs is None:
            return _error("404 The specified container does not exist.", "ContainerNotFound")
        if not name:
            is_list = asked.get("comp") == "list"
            return _listed(container, blobs, asked) if is_list else ("200 OK", _properties(b""), b"")
        if method == "PUT":
            return self._put(container, name, asked, body)
        if name not in blobs:
            return _error("404 The specified blob does not exist.", "BlobNotFound")
        if method == "DELETE":
            del blobs[name]
            return "202 Accepted", {}, b""
        return _read(blobs[name], environ.get("HTTP_X_MS_RANGE") or environ.get("HTTP_RANGE") or "", method)

    def _put(self, container: str, name: str, asked: Mapping[str, str], body: bytes) -> _Answer:
        if asked.get("comp") == "block":
            self._blocks.setdefault((container, name), {})[asked["blockid"]] = body
            return "201 Created", {}, b""
        if asked.get("comp") == "blocklist":
            blocks = self._blocks.pop((container, name), {})
            body = b"".join(blocks[one.text or ""] for one in ElementTree.fromstring(body))
        self.blobs[container][name] = body
        return "201 Created", _properties(body), b""


def _read(content: bytes, asked: str, method: str) -> _Answer:
    properties = {**_properties(content), "x-ms-blob-type": "BlockBlob", "Accept-Ranges": "bytes"}
    if method == "HEAD":
        return "200 OK", {**properties, "Content-Length": str(len(content))}, b""
    begin, _, end = asked.removeprefix("bytes=").partition("-")
    if not asked or not content:
        status = "200 OK" if not asked else "416 The range specified is invalid"
        return status, properties if not asked else {**properties, "x-ms-error-code": "InvalidRange"}, content
    low, high = int(begin), min(int(end or len(content) - 1), len(content) - 1)
    found = {**properties, "Content-Range": f"bytes {low}-{high}/{len(content)}"}
    return "206 Partial Content", found, content[low : high + 1]


def _listed(container: str, blobs: Mapping[str, bytes], asked: Mapping[str, str]) -> _Answer:
    """All at once. With a delimiter, names beyond it stand for a folder."""
    prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
    found, folders = [], dict[str, None]()
    for name, content in sorted(blobs.items()):
        if not name.startswith(prefix):
            continue
        inner, parted, _ = name[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
        if parted:
            folders[f"{prefix}{inner}{delimiter}"] = None
            continue
        properties = "".join(f"<{key}>{escape(value)}</{key}>" for key, value in _properties(content).items())
        size = f"<Content-Length>{len(content)}</Content-Length><BlobType>BlockBlob</BlobType>"
        found.append(f"<Blob><Name>{escape(name)}</Name><Properties>{properties}{size}</Properties></Blob>")
    found += [f"<BlobPrefix><Name>{escape(name)}</Name></BlobPrefix>" for name in folders]
    inside = f"<Blobs>{''.join(found)}</Blobs><NextMarker/>"
    text = f'<EnumerationResults ContainerName="{container}">{inside}</EnumerationResults>'
    return "200 OK", {}, f'<?xml version="1.0" encoding="utf-8"?>{text}'.encode()


def _properties(content: bytes) -> dict[str, str]:
    return {"Last-Modified": _DATE, "Creation-Time": _DATE, "ETag": f'"{hashlib.sha256(content).hexdigest()[:16]}"'}


def _error(status: str, code: str) -> _Answer:
    text = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{status[4:]}</Message></Error>'
    return status, {"x-ms-error-code": code}, text.encode()


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object) -> None:
        """Nothing."""


@contextmanager
def azure_server() -> Iterator[Blobs]:
    """A server with an empty container. Its address and credentials are in the environment meanwhile."""
    blobs = Blobs()
    server = make_server("127.0.0.1", 0, blobs, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}/{ACCOUNT}"
    text = f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", text)
        try:
            yield blobs
        finally:
            server.shutdown()
            thread.join()
