"""Where code names a mapping without a shape, `dict[str, Any]`, itself or by an alias of it."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping
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
    trees = {module: ast.parse(source) for module, source in modules.items()}
    aliases: set[str] = set()
    while (found := _aliases(trees, names, aliases)) != aliases:
        aliases = found
    return Counter(module for module, tree in trees.items() for _ in _uses(module, tree, names, aliases))


def _aliases(trees: Mapping[str, ast.Module], names: frozenset[str], known: set[str]) -> set[str]:
    """Dotted names of all that modules define as such a type, directly or by what is known to be one."""
    found = set(known)
    for module, tree in trees.items():
        imported = _imported(module, tree)
        found |= {f"{module}.{local}" for local, dotted in imported.items() if dotted in known}
        for node in tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            value = getattr(node, "value", None)
            if isinstance(target, ast.Name) and isinstance(value, ast.expr):
                parts = list(_union(value))
                if any(_is_untyped(part, names) or _name(part, module, imported) in known for part in parts):
                    found.add(f"{module}.{target.id}")
    return found


def _uses(module: str, tree: ast.Module, names: frozenset[str], aliases: set[str]) -> Iterator[ast.AST]:
    imported = _imported(module, tree)
    for node in [*ast.walk(tree), *_in_strings(tree)]:
        is_read = isinstance(getattr(node, "ctx", None), ast.Load)
        if _is_untyped(node, names) or (is_read and _name(node, module, imported) in aliases):
            yield node


def _in_strings(tree: ast.Module) -> Iterator[ast.AST]:
    """Types in quotes, as `cast("dict[str, Any]", value)` has them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and "[" in node.value:
            try:
                yield from ast.walk(ast.parse(node.value, mode="eval"))
            except SyntaxError:
                continue


def _is_untyped(node: ast.AST, names: frozenset[str]) -> bool:
    if not isinstance(node, ast.Subscript) or ast.unparse(node.value) not in names:
        return False
    return ast.unparse(node.slice).replace(" ", "").strip("()") in ("str,Any", "str,typing.Any")


def _union(value: ast.expr) -> Iterator[ast.expr]:
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr):
        yield from _union(value.left)
        yield from _union(value.right)
    else:
        yield value


def _imported(module: str, tree: ast.Module) -> dict[str, str]:
    """Local name → dotted name of all that a module imports."""
    package = module.split(".")
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            outer = package[: len(package) - node.level] if node.level else []
            base = ".".join([*outer, *([node.module] if node.module else [])])
            found |= {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
    return found


def _name(node: ast.AST, module: str, imported: Mapping[str, str]) -> str | None:
    """The dotted name that a name, or an attribute of a module, stands for."""
    if not isinstance(node, ast.Name | ast.Attribute):
        return None
    first, dot, rest = ast.unparse(node).partition(".")
    return f"{imported.get(first, f'{module}.{first}')}{dot}{rest}"


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
