"""Finding the lines of Shardyard that need a GPU, which a machine without one may never run."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

_WORDS = re.compile(r"cuda|nccl|gpu", re.IGNORECASE)


def lines_that_ask(package: Path) -> dict[str, dict[int, str]]:
    """File, relative to the package → line → its text.

    These are calls and names of torch.cuda, the devices and backends `cuda` and `nccl` as values, functions named after
    them, and, for each condition about a GPU, the line of the condition and the first line of the branch with a GPU.
    """
    found = {}
    for path in sorted(package.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if _WORDS.search(text) and (numbers := sorted(set(_asking(ast.parse(text))) - {0})):
            lines = text.splitlines()
            found[path.relative_to(package).as_posix()] = {number: lines[number - 1].strip() for number in numbers}
    return found


def _asking(tree: ast.Module) -> Iterator[int]:
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    line_of = {id(part): node.lineno for node in statements for part in _parts(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While) and _WORDS.search(ast.unparse(node.test)):
            yield node.lineno
            yield _first(node.orelse if _is_negated(node.test) else node.body)
        elif isinstance(node, ast.FunctionDef) and _WORDS.search(node.name):
            yield _first(node.body)
        elif _is_value(node) and id(node) in line_of:
            yield line_of[id(node)]


def _parts(statement: ast.stmt) -> Iterator[ast.AST]:
    """The nodes of a statement, without nested statements."""
    waiting: list[ast.AST] = [statement]
    while waiting:
        node = waiting.pop()
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.stmt)]


def _is_value(node: ast.AST) -> bool:
    """`torch.cuda`, or the text "cuda" or "nccl"; a condition inside an expression about a GPU."""
    if isinstance(node, ast.Attribute):
        return node.attr == "cuda" and isinstance(node.value, ast.Name) and node.value.id == "torch"
    if isinstance(node, ast.IfExp):
        return bool(_WORDS.search(ast.unparse(node.test)))
    return isinstance(node, ast.Constant) and node.value in ("cuda", "nccl")


def _is_negated(test: ast.expr) -> bool:
    return isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not)


def _first(body: list[ast.stmt]) -> int:
    """The first executed line of a block, which skips a docstring; 0 if there is none."""
    runs = [node for node in body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    return runs[0].lineno if runs else 0
