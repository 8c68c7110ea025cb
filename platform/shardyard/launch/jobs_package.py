"""The package that travels with a job: its own file and, on request, a folder that the recipe names files of."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

from shardyard.errors import UsageError
from shardyard.launch.job_spec import SPEC_NAME
from shardyard.units import format_bytes

# Ray's store of packages takes no larger ones; nobody needs to pack more to see that it is too much.
LIMIT_BYTES = 512 * 1024**2
# Ray's dashboard, which has the Jobs API, takes no larger request (DASHBOARD_CLIENT_MAX_SIZE).
REQUEST_LIMIT_BYTES = 100 * 1024**2
_SHOWN = 3
_LEFT_OUT = frozenset({".git", ".venv", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", "node_modules"})


def package(spec: str, folder: Path | None, limit: int = REQUEST_LIMIT_BYTES) -> tuple[str, bytes]:
    """Name and bytes of a zip file with the job's file, and with the files of `folder`, if there is one.

    In a git repository what .gitignore names stays behind. The name follows from the content, as Ray has it.

    Raises:
        UsageError: the folder cannot be read, or is larger than Ray takes.
    """
    content = io.BytesIO()
    found = checked_files(folder) if folder is not None else []
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
        archive.writestr(SPEC_NAME, spec)
        for path in found:
            archive.write(path, path.relative_to(folder or path))
    data = content.getvalue()
    if folder is not None and len(data) >= limit:
        raise _too_large(folder, found, f"{format_bytes(len(data))} when packed", limit)
    return f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:32]}.zip", data


def checked_files(folder: Path, limit: int = LIMIT_BYTES) -> list[Path]:
    """The files of a folder that travel.

    Raises:
        UsageError: there is no such folder, or its files are together larger than `limit`.
    """
    if not folder.is_dir():
        raise UsageError(f"--working-dir {folder} is no folder.")
    try:
        found = [path for path in _files(folder) if path != folder / SPEC_NAME]
        total = sum(path.stat().st_size for path in found)
    except OSError as error:
        raise UsageError(f"--working-dir {folder} cannot be read: {error.filename}: {error.strerror}.") from error
    if total > limit:
        raise _too_large(folder, found, format_bytes(total), limit)
    return found


def _too_large(folder: Path, found: list[Path], size: str, limit: int) -> UsageError:
    largest = ", ".join(f"{name} {format_bytes(bytes_)}" for name, bytes_ in _largest(folder, found))
    return UsageError(
        f"--working-dir {folder} holds {size}, and Ray takes {format_bytes(limit)} at most. Largest entries: {largest}."
        " Name them in .gitignore, or put data where all nodes see it and give absolute paths."
    )


def _files(folder: Path) -> Iterator[Path]:
    listed = _git_files(folder)
    if listed is not None:
        yield from listed
        return
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(names):
            path = Path(place) / name
            if path.is_file():
                yield path


def _git_files(folder: Path) -> list[Path] | None:
    """What git tracks or would track; None outside a repository."""
    command = ["git", "-C", str(folder), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    names = sorted(os.fsdecode(name) for name in done.stdout.split(b"\0") if name)
    return [path for name in names if (path := folder / name).is_file()]


def _largest(folder: Path, found: list[Path]) -> list[tuple[str, int]]:
    """The largest entries of the folder itself, with what is in them."""
    sizes: dict[str, int] = {}
    for path in found:
        first = path.relative_to(folder).parts[0]
        name = f"{first}/" if (folder / first).is_dir() else first
        sizes[name] = sizes.get(name, 0) + path.stat().st_size
    return sorted(sizes.items(), key=lambda item: -item[1])[:_SHOWN]
