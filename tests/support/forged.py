"""Checkpoints as somebody who means harm would write them: with code inside, and a manifest that fits."""

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
    """Unpickling it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.makedirs, (str(self.trace), 0o777, True)


def with_code(state: Any, trace: Path) -> bytes:
    """What `torch.save` writes for a state that carries code along, which makes the folder `trace` when it is run."""
    buffer = io.BytesIO()
    torch.save({**state, "zz_code": Code(trace)}, buffer)
    return buffer.getvalue()


def forge(checkpoint: Path, name: str, data: bytes) -> None:
    """Put a file of one's own into a checkpoint, and have the manifest say that it belongs there."""
    (checkpoint / name).write_bytes(data)
    manifest = files.read_manifest(checkpoint)
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    body["files"][name] = {"size_bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    (checkpoint / files.MANIFEST).write_text(json.dumps({**body, "sha256": digest}))
