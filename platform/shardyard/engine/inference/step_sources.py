"""Restricting the data that is read for an untrusted run to Shardyard's own data and given folders.

The recipe of a run from elsewhere can name any file or address, which the user who inspects the run has not chosen.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from shardyard.data.datasets.store import data_root
from shardyard.errors import UsageError
from shardyard.recipe.catalog.shipped import find_tokenizer_spec
from shardyard.recipe.schema import Recipe

_REACHES_OUT = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")


def check_sources(recipe: Recipe, folders: Sequence[Path], command: str = "shardyard data rows") -> None:
    """Check that data, tokenizer and configuration are Shardyard's own or in these folders, after following links.

    Args:
        command: the command that reads them anyway, for a user who trusts the run.

    Raises:
        UsageError: one of them is an address, a data set of the hub, or a file elsewhere.
    """
    within = _within([*folders, data_root()])
    for field, message in _findings(recipe, within):
        raise UsageError(
            f"{field} {message}. A run from elsewhere may name anything, so the dashboard reads documents from "
            f"Shardyard's own data, the runs folder and folders that its --data-dir names. `{command}` "
            "in a terminal reads what the run names."
        )


def refuse_network() -> None:
    """Block all further network connections of this process, from any library."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _REACHES_OUT:
            return
        if event.startswith("socket.get") or arguments[0].family != socket.AF_UNIX:
            raise OSError(errno.ENETUNREACH, "the network is not used while documents are read for others")

    sys.addaudithook(hook)


def _findings(recipe: Recipe, within: Callable[[Path], bool]) -> Iterator[tuple[str, str]]:
    for index, source in enumerate(recipe.data.train):
        if source.path is not None and (problem := _data_problem(source.path, within)):
            yield f"data.train[{index}].path", problem
        if source.exclude is not None and not within(Path(source.exclude)):
            yield f"data.train[{index}].exclude", f"is {source.exclude}, which lies elsewhere"
    spec = find_tokenizer_spec(recipe.tokenizer)
    named = {"tokenizer": None if spec else recipe.tokenizer, "model.pretrained": recipe.model.pretrained}
    for field, name in named.items():
        # Other names are looked up in the hub's cache on this machine.
        if name is not None and _is_path(name) and not within(Path(name)):
            yield field, f"is {name}, which lies elsewhere"


def _data_problem(path: str, within: Callable[[Path], bool]) -> str | None:
    if "://" in path or path.startswith("//"):
        return f"is the address {path}"
    if not _is_path(path):
        return f"is {path}, a data set of the hub"
    # The part before the first wildcard is checked before any folder is listed.
    if not within(_before_magic(path)) or not all(within(Path(found)) for found in _matches(path)):
        return f"is {path}, which lies elsewhere"
    return None


def _matches(path: str) -> Iterator[str]:
    for found in glob.iglob(str(Path(path).expanduser()), recursive=True):
        yield found
        if Path(found).is_dir():
            yield from (str(inner) for inner in Path(found).rglob("*"))


def _before_magic(path: str) -> Path:
    fixed = Path()
    for part in Path(path).parts:
        if glob.has_magic(part):
            break
        fixed /= part
    return fixed


def _is_path(name: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        if Path(name).expanduser().exists():
            return True
    return glob.has_magic(name) or name.startswith((".", "/", "~")) or bool(Path(name.partition("@")[0]).suffix)


def _within(folders: Sequence[Path]) -> Callable[[Path], bool]:
    roots = [folder.expanduser().resolve() for folder in folders]

    def within(path: Path) -> bool:
        place = path.expanduser().resolve()
        return any(place.is_relative_to(root) for root in roots)

    return within
