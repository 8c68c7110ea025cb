"""Checkpoints that others wrote: with embedded code and a matching manifest, or in the first layout, in which each file
of DeepSpeed is one of torch with one SHA-256."""

from __future__ import annotations

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.shards import opened


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
    (checkpoint / files.MANIFEST).write_text(json.dumps({**body, "sha256": digest_of(body)}))


def digest_of(body: object) -> str:
    """The SHA-256 of a manifest without its own."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def write_first_manifest(folder: Path, **metadata: object) -> None:
    """A manifest of format 1 over all files of a folder."""
    entries = {
        path.relative_to(folder).as_posix(): {
            "size_bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.rglob("*")
        if path.is_file() and path.name != files.MANIFEST
    }
    body = {**metadata, "format": 1, "files": entries}
    (folder / files.MANIFEST).write_text(json.dumps({**body, "sha256": digest_of(body)}))


def to_first_layout(folder: Path) -> Path:
    """Rewrite a checkpoint as the first version of the platform wrote it; returns the folder."""
    manifest, shards = files.read_manifest(folder), opened(folder)
    (folder / "engine").mkdir()
    for name in shards.names:
        torch.save(shards.read(name, copied=True), folder / "engine" / name)
    for rank in range(manifest["world_size"]):
        (folder / f"rank-{rank:05d}.json").write_text(shards.random(rank))
        (folder / f"rank-{rank:05d}.safetensors").unlink()
    kept = {key: value for key, value in manifest.items() if key not in ("sha256", "files")}
    write_first_manifest(folder, **kept)
    return folder
