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
from importlib.metadata import EntryPoint, entry_points
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
                f"the package {_package(point)} provides {point.name!r} as one of shardyard.{kind}, a name that "
                "Shardyard uses itself; rename its entry point, or uninstall the package."
            )
        other = found.setdefault(point.name, point)
        if other.value != point.value:
            raise UsageError(
                f"{point.name!r} of shardyard.{kind} is provided by two packages, {_package(other)} and "
                f"{_package(point)}; uninstall one, or rename its entry point."
            )
    return found


def find(kind: Kind, name: str, ours: Iterable[str] = ()) -> str | None:
    """The reference that a name stands for: itself, or that of an entry point; None for an unknown name.

    Raises:
        UsageError: see `installed`.
    """
    if is_reference(name):
        return name
    point = installed(kind, ours).get(name)
    return point.value if point is not None else None


def origin(kind: Kind, name: str) -> Origin:
    """Where the code of a name comes from, with the SHA-256 of its source: of the file, or of all of its package.

    Raises:
        UsageError: the name is unknown, or its module cannot be imported.
    """
    reference = find(kind, name)
    assert reference is not None, "checked with the recipe"
    where = reference.rpartition(":")[0]
    if where.endswith(".py"):
        _module(where, reference)
        return Origin(reference, None, _sha256([Path(where).expanduser()]))
    module = _module(where, reference)
    package = sys.modules[module.__name__.partition(".")[0]]
    folder = Path(package.__file__ or "").parent if hasattr(package, "__path__") else None
    files = sorted(folder.rglob("*.py")) if folder is not None else [Path(package.__file__ or "")]
    point = None if is_reference(name) else installed(kind)[name]
    return Origin(reference, _package(point) if point is not None else None, _sha256(files))


@cache
def _entry_points(group: str) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=group), key=lambda point: (point.name, point.value)))


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value


def _sha256(files: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of files; names are relative to the first file's folder."""
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
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
        raise UsageError(f"{reference}: there is no module {error.name!r} here; install the package.") from error
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
