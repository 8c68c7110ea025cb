"""Checkpoints in the first layout: `torch.save` for each file of DeepSpeed, and one SHA-256 for each."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from shardyard.engine.checkpoint import files
from shardyard.engine.checkpoint.shards import opened


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
