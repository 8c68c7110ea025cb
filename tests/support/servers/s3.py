"""A server of S3 on loopback that refuses a share of all requests, as one that is overloaded does."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

BUCKET = "bucket"


class Faults:
    """A WSGI application that answers a share of requests with 503 instead of handing them on."""

    def __init__(self, app: Any, share: float, seed: int = 0) -> None:
        self._app, self.share = app, share
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self.refused = 0

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        with self._lock:
            refuse = self._random.random() < self.share
            self.refused += refuse
        if not refuse:
            found: Iterable[bytes] = self._app(environ, start_response)
            return found
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length:
            environ["wsgi.input"].read(length)
        kind = self._random.choice(["503 Service Unavailable", "500 Internal Server Error"])
        text = b"<Error><Code>ServiceUnavailable</Code><Message>Please try again</Message></Error>"
        start_response(kind, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [text]


def environment(address: str) -> dict[str, str]:
    """What a client needs to find the server."""
    return {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def s3_server(share: float = 0.0) -> Iterator[Faults]:
    """A server with an empty bucket. Its address and credentials are in the environment meanwhile."""
    import boto3
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    faults = Faults(DomainDispatcherApplication(create_backend_app), 0.0)
    server = make_server("127.0.0.1", 0, faults, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment(f"http://127.0.0.1:{server.server_port}").items():
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        faults.share = share
        try:
            yield faults
        finally:
            server.shutdown()
            thread.join()
