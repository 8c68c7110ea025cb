"""Malicious checkpoints: with embedded code, and a matching manifest."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from shardyard.engine.checkpoint import files


class Code:
    """An object whose unpickling creates a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.trace), 0o777, True)


def with_code(state: Any, trace: Path) -> bytes:
    """The output of `torch.save` for a state with embedded code, which creates the folder `trace` when run."""
    buffer = io.BytesIO()
    torch.save({**state, "zz_code": Code(trace)}, buffer)
    return buffer.getvalue()


def forge(checkpoint: Path, name: str, data: bytes) -> None:
    """Add a file to a checkpoint and to its manifest."""
    (checkpoint / name).write_bytes(data)
    manifest = files.read_manifest(checkpoint)
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    body["files"][name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (checkpoint / files.MANIFEST).write_text(json.dumps({**body, "sha256": digest}))
