"""The checks of `shardyard doctor`. Each checks one thing, never raises, and gives advice."""

from __future__ import annotations

import os
import platform
import resource
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shardyard.cli.doctor.plugins import check_plugins
from shardyard.cli.doctor.probe import (
    Check,
    check_collectives,
    check_cpu_precision,
    check_deepspeed,
    check_gpu_precision,
    check_gpus,
    check_torch,
    probe_torch,
)
from shardyard.engine.deepspeed import build_locks
from shardyard.recipe.schema import Wandb
from shardyard.tracking.run.folder import runs_folder
from shardyard.tracking.run.provenance import PACKAGES
from shardyard.tracking.wandb.mirror import has_key, resolve_mode
from shardyard.units import format_bytes

GIB = 1024**3
CONNECT_SECONDS = 3.0


def all_checks(runs_dir: str | None = None) -> Iterator[Check]:
    """All checks in the order of the report, each run lazily."""
    yield check_python()
    probe = probe_torch()
    yield check_torch(probe)
    yield from check_packages()
    yield from check_plugins()
    yield check_gpus(probe)
    yield check_collectives(probe)
    yield check_cpu_precision(probe)
    yield check_gpu_precision(probe)
    yield check_compilers()
    yield check_deepspeed(probe)
    yield check_build_locks()
    yield check_shared_memory()
    yield check_runs_folder(runs_dir)
    yield check_corpus_cache()
    yield check_open_files()
    yield check_ray()
    yield check_wandb()
    yield check_hub()


def check_python() -> Check:
    version = platform.python_version()
    detail = f"{version} on {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    return Check("Python", "ok", detail, needed=True)


def check_packages() -> Iterator[Check]:
    """Each dependency against the range that Shardyard declares; the versions it is tested with."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in metadata.requires("shardyard") or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        yield Check(
            "packages",
            "warn",
            "Shardyard itself is not installed, so its dependencies cannot be checked",
            "Install it: `make setup`, or `pip install -e .` in a checkout.",
        )
        return
    good = []
    for requirement in sorted(wanted, key=lambda item: item.name):
        check = _check_package(requirement.name, str(requirement.specifier), requirement.specifier.contains)
        if check.status == "ok":
            good.append(check.detail)
        else:
            yield check
    shown = ", ".join(text for text in good if text.split()[0] in PACKAGES)
    yield Check("packages", "ok", f"{len(good)} within the tested ranges: {shown}", needed=True)


def _check_package(name: str, wanted: str, fits: Any) -> Check:
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Check(name, "missing", "not installed", f"pip install '{name}{wanted}'", needed=True)
    if not fits(version, prereleases=True):
        detail = f"{version} is outside of the tested range {wanted}"
        return Check(name, "warn", detail, f"pip install '{name}{wanted}'")
    return Check(name, "ok", f"{name} {version}")


def check_compilers() -> Check:
    tools = {
        "g++": shutil.which("g++") or shutil.which("c++"),
        "ninja": shutil.which("ninja") or _beside_python("ninja"),
    }
    lacking = [name for name, path in tools.items() if path is None]
    if lacking:
        packages = " ".join({"ninja": "ninja-build"}.get(name, name) for name in lacking)
        return Check(
            "compilers",
            "warn",
            f"no {' and no '.join(lacking)}: DeepSpeed's C++ operations (offload) and torch.compile cannot be built",
            f"apt-get install {packages}, or leave offload and compile off.",
        )
    return Check("compilers", "ok", "g++, ninja")


def _beside_python(name: str) -> str | None:
    path = Path(sys.executable).with_name(name)
    return str(path) if os.access(path, os.X_OK) else None


def check_build_locks() -> Check:
    """Compilations of DeepSpeed's operators: running ones, and stale locks of killed ones."""
    folder = build_locks.root()
    found = [(path, state) for path in build_locks.locks(folder) if (state := build_locks.look(path)) is not None]
    stale = [str(path) for path, state in found if state.stale]
    if stale:
        return Check(
            "compilations",
            "warn",
            f"stale locks of killed ones: {', '.join(stale)}",
            f"A launch that needs one removes its lock; other programs wait forever: rm {' '.join(stale)}",
        )
    unsure = [build_locks.in_words(path, state) for path, state in found if state.pid is None]
    if unsure:
        return Check("compilations", "warn", "; ".join(unsure), "A launch that needs one waits and reports it.")
    under_way = [f"process {state.pid} compiles {path.parent.name}" for path, state in found]
    return Check("compilations", "ok", "; ".join(under_way) or f"none under way in {folder}")


def check_shared_memory() -> Check:
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Check("/dev/shm", "warn", "not there", "Ray then stores objects on disk, which is slow.")
    detail = f"{format_bytes(usage.free)} free of {format_bytes(usage.total)}"
    if usage.total < 2 * GIB:
        return Check("/dev/shm", "warn", detail, "In a container, start it with --shm-size=4g (or --ipc=host).")
    return Check("/dev/shm", "ok", detail)


def check_runs_folder(runs_dir: str | None) -> Check:
    folder = runs_folder(runs_dir)
    if (reason := _cannot_write(folder)) is not None:
        return Check(
            "runs folder",
            "missing",
            f"{folder} cannot be written: {reason}",
            "Give another one with --runs-dir or SHARDYARD_RUNS.",
            needed=True,
        )
    free = shutil.disk_usage(_existing(folder)).free
    detail = f"{folder}, {format_bytes(free)} free"
    if free < 5 * GIB:
        return Check("runs folder", "warn", detail, "Checkpoints are large: free some space or choose another disk.")
    return Check("runs folder", "ok", detail, needed=True)


def check_corpus_cache() -> Check:
    configured = os.environ.get("SHARDYARD_CACHE")
    folder = Path(configured).expanduser() if configured else Path.home() / ".cache" / "shardyard"
    if (reason := _cannot_write(folder)) is not None:
        return Check(
            "corpus cache",
            "warn",
            f"{folder} cannot be written: {reason}",
            "Embedded corpora are then built again for every run; set SHARDYARD_CACHE to a writable folder.",
        )
    return Check("corpus cache", "ok", str(folder))


def check_open_files() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 4096:
        return Check("open files", "warn", f"limit {soft} (hard {hard})", "Ray needs more: `ulimit -n 65536`.")
    return Check("open files", "ok", f"limit {soft}")


def check_ray() -> Check:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Check("Ray", "missing", "not installed", "Install it: `make setup`.", needed=True)
    address, source = _ray_address()
    if address is None:
        return Check("Ray", "ok", f"{version}; no cluster is running, a launch starts a local one", needed=True)
    if not _reachable(address):
        advice = (
            "Start the cluster, or unset RAY_ADDRESS to train on this machine."
            if source == "RAY_ADDRESS"
            else "A cluster ended without cleaning up; `ray stop` removes the rest."
        )
        return Check("Ray", "warn", f"{version}; the cluster of {source} at {address} does not answer", advice)
    return Check("Ray", "ok", f"{version}; cluster of {source} at {address} answers", needed=True)


def _ray_address() -> tuple[str | None, str]:
    """The address a launch would use and where it comes from; (None, "") when it would start a cluster."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address and address not in ("auto", "local"):
        return address, "RAY_ADDRESS"
    try:
        running = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster").read_text(encoding="utf-8")
    except OSError:
        return None, ""
    return (running.strip(), "this machine") if running.strip() else (None, "")


def _reachable(address: str) -> bool:
    parts = urlsplit(address if "//" in address else f"//{address}")
    default = {"ray": 10001, "http": 8265, "https": 443}.get(parts.scheme, 6379)
    try:
        with socket.create_connection((parts.hostname or "", parts.port or default), timeout=CONNECT_SECONDS):
            return True
    except (OSError, ValueError):
        return False


def check_wandb() -> Check:

    mode, key = resolve_mode(Wandb()), has_key()
    if mode == "online" and not key:
        return Check(
            "W&B",
            "warn",
            "online is requested, but there is no key",
            "Run `wandb login` or set WANDB_API_KEY; until then runs are kept offline.",
        )
    return Check("W&B", "ok", f"{mode} ({'a key is found' if key else 'no key'})")


def check_hub() -> Check:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return Check("hub", "ok", "not checked, because HF_HUB_OFFLINE is set")
    server = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=CONNECT_SECONDS):
            pass
    except urllib.error.HTTPError:
        pass  # any answer is sufficient
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return Check(
            "hub",
            "warn",
            f"{server} does not answer ({reason})",
            "Embedded sources and local files work without it; set HF_HUB_OFFLINE=1 to skip the wait.",
        )
    return Check("hub", "ok", f"{server} answers")


def _cannot_write(folder: Path) -> str | None:
    """Why nothing can be created in a folder (or its nearest existing parent); None if it can."""
    existing = _existing(folder)
    probe = existing / f".shardyard-doctor-{os.getpid()}"
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.parents) if path.exists())
