"""The package's modules, their imports in any syntax, and the cycles among them."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "platform" / "shardyard"
_IMPORTERS = ("importlib.import_module", "import_module", "__import__", "import_at_once")
# A string that names a module of Shardyard, or an object in one: `shardyard.cli.main:main`.
_NAMED = re.compile(r"(shardyard(?:\.[a-z_0-9]+)+)(?::[A-Za-z_.]+)?")


@cache
def modules(package: Path = PACKAGE) -> dict[str, Path]:
    """Files of the package by the dotted names of their modules."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(path: str, source: str) -> tuple[tuple[int, str], ...]:
    """Line and full dotted name of all that a module imports; `path` is relative to the package, as in `data/chat.py`.

    Imports inside functions and under `TYPE_CHECKING` count like any other, and so do names given to `import_module`.
    """
    # The package of `data/loader.py`, and of `data/__init__.py`, is shardyard.data.
    package = ["shardyard", *path.split("/")[:-1]]
    found: list[tuple[int, str]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            outer = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*outer, *([node.module] if node.module else [])])
            # `from shardyard import data` names a room only by what is imported.
            found += ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node.func) in _IMPORTERS:
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    found.append((node.lineno, argument.value))
    return tuple(found)


def _called(function: ast.expr) -> str:
    """`importlib.import_module` of a call, or the end of a longer expression."""
    if isinstance(function, ast.Attribute):
        outer = function.value.id + "." if isinstance(function.value, ast.Name) else ""
        return outer + function.attr
    return function.id if isinstance(function, ast.Name) else ""


def named_in_strings(source: str, known: Collection[str]) -> list[tuple[int, str]]:
    """Line and name of each module in `known` that is named by a string of the source, as for `python -m`."""
    found = []
    for node in ast.walk(ast.parse(source)) if "shardyard." in source else ():
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            whole = _NAMED.fullmatch(node.value)
            if whole is not None and (name := _module_of(whole[1], known)) is not None:
                found.append((node.lineno, name))
    return found


def edges(package: Path = PACKAGE) -> dict[str, set[str]]:
    """Module of the package → the other modules of the package that it imports."""
    found, known = {}, modules(package)
    for name, path in known.items():
        relative = path.relative_to(package).as_posix()
        asked = (_module_of(imported, known) for _, imported in imports(relative, path.read_text(encoding="utf-8")))
        found[name] = {other for other in asked if other is not None and other != name}
    return found


def _module_of(name: str, known: Collection[str]) -> str | None:
    """The module of `package.module.thing`, or the package if the name is defined there."""
    outer = name.rpartition(".")[0]
    return name if name in known else outer if outer in known and outer.count(".") else None


def cycles(graph: Mapping[str, Collection[str]]) -> list[frozenset[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[frozenset[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(frozenset(component))

    for node in graph:
        if node not in order:
            visit(node)
    return found
