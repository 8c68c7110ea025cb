"""Finding uses of the untyped mapping `dict[str, Any]` in code, direct or by an alias."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

DICTS = frozenset({"dict", "Dict", "typing.Dict"})
MAPPINGS = frozenset({"Mapping", "MutableMapping", "typing.Mapping", "typing.MutableMapping"})


def sources(package: Path) -> dict[str, str]:
    """The text of each module of a package, by its dotted name."""
    return {_dotted(path.relative_to(package.parent)): path.read_text("utf-8") for path in package.rglob("*.py")}


def untyped(modules: Mapping[str, str], names: frozenset[str] = DICTS) -> Counter[str]:
    """How often each module names `X[str, Any]` for an X of `names`: in an annotation, a cast or anywhere else.

    A name that a module gives to such a type, also as one of a union, counts wherever it is used, and so does a name
    for that name. Types that only hold one, such as `Callback = Callable[[dict[str, Any]], None]`, count once.
    """
    parsed = [_parse(name, source) for name, source in modules.items()]
    aliases: set[str] = set()
    while (found := {alias for module in parsed for alias in module.aliases(names, aliases)}) != aliases:
        aliases = found
    return Counter(module.name for module in parsed for _ in module.uses(names, aliases))


@dataclass(frozen=True)
class _Module:
    """A module, what its local names stand for, and the nodes of it that may name a type."""

    name: str
    body: list[ast.stmt]
    imported: Mapping[str, str]
    subscripts: list[ast.Subscript]
    reads: list[ast.Name | ast.Attribute]

    def aliases(self, names: frozenset[str], known: set[str]) -> Iterator[str]:
        """Dotted names of all that the module defines or imports as such a type, by what is known to be one."""
        yield from (f"{self.name}.{local}" for local, dotted in self.imported.items() if dotted in known)
        for node in self.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            value = getattr(node, "value", None)
            if not isinstance(target, ast.Name) or not isinstance(value, ast.expr):
                continue
            if any(_is_untyped(part, names) or self.dotted(part) in known for part in _union(value)):
                yield f"{self.name}.{target.id}"

    def uses(self, names: frozenset[str], aliases: set[str]) -> Iterator[ast.expr]:
        """Every place where the module names such a type."""
        yield from (node for node in self.subscripts if _is_untyped(node, names))
        last = {alias.rpartition(".")[2] for alias in aliases}
        for node in self.reads:
            if (node.id if isinstance(node, ast.Name) else node.attr) in last and self.dotted(node) in aliases:
                yield node

    def dotted(self, node: ast.expr) -> str | None:
        """The dotted name that a name, or an attribute of a module, stands for."""
        if not isinstance(node, ast.Name | ast.Attribute):
            return None
        first, dot, rest = ast.unparse(node).partition(".")
        return f"{self.imported.get(first, f'{self.name}.{first}')}{dot}{rest}"


@cache
def _parse(name: str, source: str) -> _Module:
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    nodes += [inner for node in nodes for inner in _in_string(node)]
    return _Module(
        name,
        tree.body,
        dict(pair for node in nodes for pair in _imported(name, node)),
        [node for node in nodes if isinstance(node, ast.Subscript)],
        [node for node in nodes if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Load)],
    )


def _in_string(node: ast.AST) -> Iterator[ast.AST]:
    """Types in quotes, as `cast("dict[str, Any]", value)` has them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "Any]" in node.value:
        try:
            yield from ast.walk(ast.parse(node.value, mode="eval"))
        except SyntaxError:
            return


def _is_untyped(node: ast.AST, names: frozenset[str]) -> bool:
    if not isinstance(node, ast.Subscript) or not isinstance(node.slice, ast.Tuple):
        return False
    of = [ast.unparse(element) for element in node.slice.elts]
    return of in (["str", "Any"], ["str", "typing.Any"]) and ast.unparse(node.value) in names


def _union(value: ast.expr) -> Iterator[ast.expr]:
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        yield from _union(value.left)
        yield from _union(value.right)
    else:
        yield value


def _imported(module: str, node: ast.AST) -> Iterator[tuple[str, str]]:
    """Local name and dotted name of what is imported."""
    if isinstance(node, ast.Import):
        yield from ((alias.asname, alias.name) for alias in node.names if alias.asname)
    elif isinstance(node, ast.ImportFrom):
        outer = module.split(".")[: -node.level] if node.level else []
        base = ".".join([*outer, *([node.module] if node.module else [])])
        yield from ((alias.asname or alias.name, f"{base}.{alias.name}") for alias in node.names)


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
