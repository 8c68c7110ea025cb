"""A server of Google Cloud Storage on loopback, with an empty bucket: the package gcp-storage-emulator."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import fsspec
import pytest

BUCKET = "bucket"


@contextmanager
def gs_server() -> Iterator[None]:
    """A server. Its address is in the environment meanwhile, and nobody asks for credentials."""
    import gcsfs
    from gcp_storage_emulator.server import create_server

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET)
    server.start()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
            patch.setitem(fsspec.config.conf, "gs", {"token": "anon"})
            # The class that gcsfs gives asks over gRPC, which the emulator does not speak, for the kind of the bucket.
            fsspec.register_implementation("gs", gcsfs.core.GCSFileSystem, clobber=True)
            yield
    finally:
        fsspec.register_implementation("gs", gcsfs.GCSFileSystem, clobber=True)
        server.stop()
