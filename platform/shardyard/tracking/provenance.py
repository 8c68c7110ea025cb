"""Where a run comes from: code, packages, machine and command line, without any secret."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("shardyard", "torch", "deepspeed", "ray", "transformers", "datasets", "wandb", "tokenizers")
HIDDEN = "[hidden]"
# `monkey` and `max_tokens` are no secrets: the word must stand alone, in the singular.
_SECRET_NAME = re.compile(
    r"(^|[^a-z])(api[-_.]?key|key|token|secret|password|passwd|credentials?|auth|bearer)($|[^a-z])", re.IGNORECASE
)
_NOT_SECRET = re.compile(r"(eos|bos|pad|unk|mask|cls|sep)_token", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|wandb_v\d_\w{20,}|gh[pousr]_\w{20,}|sk-[\w-]{20,}|AKIA\w{16})\b")
_URL_LOGIN = re.compile(r"(\w+://)[^/\s@]+@")


def collect(
    arguments: Sequence[str] | None = None,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """All that is known about this process: `git`, `packages`, `python`, `host`, `cpu`, `cpus`, `gpus`, `command`.

    What cannot be found out is left out. `arguments` defaults to the command line, `folder` to the working
    directory, `environment` (whose secret values are removed from the command) to that of the process.
    """
    arguments = sys.argv if arguments is None else arguments
    found: dict[str, Any] = {
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
    return {key: value for key, value in found.items() if value is not None}


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Installed versions, without importing anything; packages that are missing are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """`{"commit": ..., "dirty": ...}` of the repository around a folder; None outside of one or without git."""
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
    """Names of the NVIDIA GPUs of this machine, asked of the driver so that torch stays unloaded; [] without any."""
    names = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"])
    return [line.strip() for line in (names or "").splitlines() if line.strip()]


def hide_secrets(arguments: Sequence[str], environment: Mapping[str, str]) -> list[str]:
    """The arguments, with values of key-like options, of secret variables and of known token shapes replaced."""
    values = [value for name, value in environment.items() if is_secret_name(name) and len(value) >= 8]
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if hide_next:
            shown.append(HIDDEN)
        elif equals and is_secret_name(name):
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(scrub(argument, values))
        hide_next = argument.startswith("-") and not equals and is_secret_name(argument)
    return shown


def scrub(text: str, secrets: Sequence[str] = ()) -> str:
    """The text without the given secrets, logins in URLs and strings that have the shape of a known token."""
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return _URL_LOGIN.sub(rf"\1{HIDDEN}@", _SECRET_VALUE.sub(HIDDEN, text))


def is_secret_name(name: str) -> bool:
    """`WANDB_API_KEY`, `HF_TOKEN`, `--password` → True; `--max-tokens`, `model.config.eos_token_id` → False."""
    words = name.replace("_", "-")
    return bool(_SECRET_NAME.search(words)) and not _NOT_SECRET.search(name)


def _output(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
