"""The provenance of a run: code, packages, machine and command line, without secrets."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import cast

from shardyard.redaction import hide_secrets
from shardyard.tracking.run.info import Provenance

PACKAGES = ("shardyard", "torch", "deepspeed", "ray", "transformers", "datasets", "wandb", "tokenizers")


def collect(
    arguments: Sequence[str] | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    code: Mapping[str, Mapping[str, str | None]] | None = None,
) -> Provenance:
    """The provenance of this process: `git`, `packages`, `python`, `host`, `cpu`, `cpus`, `gpus`, `command`.

    `code` is the recipe's code from outside Shardyard, by field, with source hashes.

    Unknown values are omitted. `arguments` defaults to the command line, `folder` to the working directory,
    `environment` (whose secret values are removed from the command) to that of the process.
    """
    arguments = sys.argv if arguments is None else arguments
    found = {
        "git": git_state(folder or Path.cwd()),
        "packages": package_versions(),
        "python": platform.python_version(),
        "host": platform.node(),
        "system": platform.platform(terse=True),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "gpus": gpu_names(),
        "command": hide_secrets(arguments, os.environ if environment is None else environment),
    }
    known = {**found, "code": dict(code) if code else None}
    return cast("Provenance", {key: value for key, value in known.items() if value is not None})


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions, without imports; missing packages are omitted."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, object] | None:
    """`{"commit": ..., "dirty": ...}` of the repository that contains a folder; None outside a repository or without
    git."""
    commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if not commit:
        return None
    changes = _output(["git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no"])
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def cpu_model() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or None
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or None)


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs of this machine, from the driver, without importing torch; [] if there are none."""
    names = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return [line.strip() for line in (names or "").splitlines() if line.strip()]


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
