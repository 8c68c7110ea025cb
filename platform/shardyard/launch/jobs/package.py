"""The package of a job: its job file and, on request, a folder with files that the recipe names."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from shardyard.errors import UsageError
from shardyard.launch.jobs.files import IGNORE_FILE, Selection, select
from shardyard.launch.jobs.spec import SPEC_NAME
from shardyard.units import format_bytes

# The limit of Ray's package store; packing stops there.
LIMIT_BYTES = 512 * 1024**2
# The largest request that Ray's dashboard accepts (DASHBOARD_CLIENT_MAX_SIZE).
REQUEST_LIMIT_BYTES = 100 * 1024**2
_SHOWN = 3
_NAMED = 6


def package(
    spec: str,
    selection: Selection | None,
    folder: Path | None,
    limit: int = REQUEST_LIMIT_BYTES,
) -> tuple[str, bytes]:
    """Name and bytes of a zip file with the job file, and with the selected files of `folder`, if given.

    The name is derived from the content, as Ray does.

    Raises:
        UsageError: the package is larger than Ray's limit.
    """
    content = io.BytesIO()
    found = selection.files if selection is not None else ()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
        archive.writestr(SPEC_NAME, spec)
        for path, _ in found:
            archive.write(path, path.relative_to(folder or path))
    data = content.getvalue()
    if selection is not None and folder is not None and len(data) >= limit:
        raise _too_large(folder, selection, f"{format_bytes(len(data))} when packed", limit)
    return f"_ray_pkg_{hashlib.sha256(data).hexdigest()[:32]}.zip", data


def checked_files(folder: Path, never: Iterable[Path] = (), limit: int = LIMIT_BYTES) -> Selection:
    """The selected and excluded files of a folder.

    Raises:
        UsageError: the folder does not exist or cannot be read, or the total size of its files exceeds `limit`.
    """
    if not folder.is_dir():
        raise UsageError(f"--working-dir {folder} is not a folder.")
    try:
        found = select(folder, never)
    except OSError as error:
        raise UsageError(f"--working-dir {folder} cannot be read: {error.filename}: {error.strerror}.") from error
    # The job file of another job; this job's file replaces it.
    found = replace(found, files=tuple(file for file in found.files if file[0] != folder / SPEC_NAME))
    if found.num_bytes > limit:
        raise _too_large(folder, found, format_bytes(found.num_bytes), limit)
    return found


def in_short(folder: Path, selection: Selection) -> str:
    """One line about selected and excluded files."""
    count = len(selection.files)
    what = "1 file" if count == 1 else f"{count} files"
    text = f"{folder}: {what}, {format_bytes(selection.num_bytes)}, to upload with the job"
    if not selection.left_out:
        return text
    names = [name for name, _ in selection.left_out]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{text}; excluded: {', '.join(names[:_NAMED])}{more} (--dry-run FILE lists all, {IGNORE_FILE} changes it)"


def listing(folder: Path, selection: Selection) -> Iterator[str]:
    """A line for each selected file with its size, and for each excluded one with the reason."""
    for path, size in selection.files:
        yield f"{format_bytes(size):>10}  {path.relative_to(folder)}"
    for name, reason in selection.left_out:
        yield f"{'stays':>10}  {name}  ({reason})"


def _too_large(folder: Path, found: Selection, size: str, limit: int) -> UsageError:
    largest = ", ".join(f"{name} {format_bytes(bytes_)}" for name, bytes_ in _largest(folder, found))
    return UsageError(
        f"--working-dir {folder} holds {size}, and Ray's limit is {format_bytes(limit)}. Largest entries: {largest}. "
        f"List them in {IGNORE_FILE}, or put data where all nodes see it and give absolute paths."
    )


def _largest(folder: Path, found: Selection) -> list[tuple[str, int]]:
    """The largest entries of the folder, with their contents."""
    sizes: dict[str, int] = {}
    for path, size in found.files:
        first = path.relative_to(folder).parts[0]
        name = f"{first}/" if (folder / first).is_dir() else first
        sizes[name] = sizes.get(name, 0) + size
    return sorted(sizes.items(), key=lambda item: -item[1])[:_SHOWN]
