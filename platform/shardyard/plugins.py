"""Code from outside: entry points of installed packages, and references (`package.module:name`, `file.py:name`).

Nothing is imported before its name is used. A name that Shardyard uses itself, or that two packages provide, is
refused.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from shardyard.errors import UsageError
from shardyard.suggest import suggestion

Kind = Literal["objectives", "models", "formats", "hooks", "trackers", "schedulers"]


@dataclass(frozen=True)
class Origin:
    """The origin of code from outside: its reference, its package and the hash of its source."""

    reference: str
    package: str | None
    sha256: str


def is_reference(name: str) -> bool:
    """Whether a name is a reference to code: `package.module:name` or `file.py:name`."""
    where, colon, what = name.rpartition(":")
    return bool(colon and where and what.isidentifier())


def is_file_reference(name: str) -> bool:
    """Whether the code is in a file and not in an installed package."""
    return is_reference(name) and name.rpartition(":")[0].endswith(".py")


def short(name: str) -> str:
    """A name without the folders of its file: `file.py:name`."""
    where, colon, what = name.rpartition(":")
    return f"{Path(where).name}{colon}{what}" if is_file_reference(name) else name


def load(reference: str) -> Any:
    """The object that a reference names. A relative path starts at the current folder.

    Raises:
        UsageError: the module cannot be imported, or has no such name.
    """
    where, _, what = reference.rpartition(":")
    module = _module(where, reference)
    try:
        return getattr(module, what)
    except AttributeError:
        hint = suggestion(what, [name for name in vars(module) if not name.startswith("_")])
        raise UsageError(f"{reference}: {where} has no {what!r}; {hint}") from None


def installed(kind: Kind, ours: Iterable[str] = ()) -> Mapping[str, EntryPoint]:
    """What installed packages provide of a kind, by name.

    Raises:
        UsageError: Shardyard uses a name itself, or two packages provide it.
    """
    found: dict[str, EntryPoint] = {}
    known = frozenset(ours)
    for point in _entry_points(f"shardyard.{kind}"):
        if point.name in known:
            raise UsageError(
                f"the package {package_of(point)} provides {point.name!r} as one of shardyard.{kind}, a name that "
                "Shardyard uses itself; rename its entry point, or uninstall the package."
            )
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise UsageError(
                f"{point.name!r} of shardyard.{kind} is provided by two packages, {package_of(other)} and "
                f"{package_of(point)}; uninstall one, or rename its entry point."
            )
    return found


def brought(kind: Kind) -> tuple[EntryPoint, ...]:
    """All that installed packages bring of a kind, whether it can be used or not."""
    return _entry_points(f"shardyard.{kind}")


def find(kind: Kind, name: str, ours: Iterable[str] = ()) -> str | None:
    """The reference that a name stands for: itself, or that of an entry point; None for an unknown name.

    Raises:
        UsageError: see `installed`.
    """
    if is_reference(name):
        return name
    point = installed(kind, ours).get(name)
    return point.value if point is not None else None


def problem_of(kind: Kind, name: str, ours: Iterable[str] = ()) -> str | None:
    """Why a name leads nowhere, for a recipe's problems; None where it leads to something. No code is imported."""
    try:
        reference = find(kind, name, ours)
    except UsageError as error:
        return str(error).removesuffix(".")
    if reference is None:
        what = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind[:-1]}"
        return f"no installed package brings {what} {name!r}; {suggestion(name, [*ours, *installed(kind)])}"
    where = reference.rpartition(":")[0]
    if is_file_reference(reference) and not Path(where).expanduser().is_file():
        return f"there is no file {where!r}; a relative path starts at the current folder, or at that of the recipe"
    return None


def origin(kind: Kind, name: str) -> Origin:
    """Where the code of a name comes from, with the SHA-256 of its source: of the file, or of all of its package.

    Raises:
        UsageError: the name is unknown, or its file or package is not here.
    """
    reference = find(kind, name)
    assert reference is not None, "checked with the recipe"
    where = reference.rpartition(":")[0]
    if where.endswith(".py"):
        return Origin(reference, None, sha256_of([Path(where).expanduser()]))
    point = None if is_reference(name) else installed(kind)[name]
    package = package_of(point) if point is not None else _package_of(where)
    return Origin(reference, package, sha256_of(_sources(where.partition(".")[0], reference)))


@cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=group), key=lambda point: (point.name, point.value)))


def package_of(point: EntryPoint) -> str:
    """The package that brings an entry point, with its version."""
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _package_of(module: str) -> str | None:
    """The distribution that brings a module, with its version; None where none does, as for a folder on the path."""
    names = packages_distributions().get(module.partition(".")[0], [])
    return f"{names[0]} {version(names[0])}" if names else None


def _sources(package: str, reference: str) -> list[Path]:
    """The Python files of a package, found without importing it."""
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    if spec is None:
        raise UsageError(f"{reference}: there is no module {package!r} here; install the package.")
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.origin is not None and Path(spec.origin).is_file() else []
    return sorted(path for folder in spec.submodule_search_locations for path in Path(folder).rglob("*.py"))


def sha256_of(files: Iterable[Path]) -> str:
    """Of the names and contents of files.

    Raises:
        UsageError: one cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
        except OSError as error:
            raise UsageError(f"{path}, which the recipe names as code, cannot be read: {error.strerror}.") from error
    return digest.hexdigest()


def _module(where: str, reference: str) -> ModuleType:
    try:
        return (
            _from_file(Path(where).expanduser().resolve()) if where.endswith(".py") else importlib.import_module(where)
        )
    except FileNotFoundError as error:
        raise UsageError(
            f"{reference}: there is no file {where!r}; a relative path starts at the current folder."
        ) from error
    except ModuleNotFoundError as error:
        own = error.name is not None and (where == error.name or where.startswith(f"{error.name}."))
        why = f"there is no module {error.name!r} here"
        raise UsageError(
            f"{reference}: {why}; install the package." if own else f"{reference}: {where} cannot be imported: {why}."
        ) from error
    except Exception as error:
        raise UsageError(f"{reference}: {where} cannot be imported: {type(error).__name__}: {error}") from error


@cache
def _from_file(path: Path) -> ModuleType:
    """Import a file as a module, under one name for the life of the process, so that its objects can be pickled."""
    name = f"shardyard_file_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None, "its name ends in .py"
    assert spec.loader is not None, "its name ends in .py"
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
