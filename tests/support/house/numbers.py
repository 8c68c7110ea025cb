"""Figures about the package: sizes, imports, cycles, untyped mappings, as compared in docs/develop/lab-notes.md.

cd tests; ../.venv/bin/python -m support.house.numbers [CHECKOUT]     a Markdown table, of this checkout or another one
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from support.house.untyped import sources, untyped
from support.module_graph import cycles, edges

MOST_IMPORTS = 12
Functions = ast.FunctionDef | ast.AsyncFunctionDef


def numbers(checkout: Path) -> dict[str, str]:
    """Figures by name."""
    package = checkout / "platform" / "shardyard"
    texts = {path.relative_to(package): path.read_text(encoding="utf-8") for path in sorted(package.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in texts.items()}
    lengths = [len(text.splitlines()) for path, text in texts.items() if path.name != "__init__.py"]
    nodes = [node for tree in trees.values() for node in ast.walk(tree)]
    functions = [node for node in nodes if isinstance(node, Functions)]
    folders = Counter(path.parent for path in texts)
    heavy = [path for path, tree in trees.items() if sum(1 for _ in _imports(tree.body)) > MOST_IMPORTS]
    names = defaultdict(set)
    for path in texts:
        names[path.stem].add(path.parent)
    twice = [name for name, places in names.items() if len(places) > 1 and name != "__init__"]
    inside = len({id(one) for function in functions for one in _imports(ast.walk(function))})
    return {
        "Python files": str(len(texts)),
        "median and most lines a file": f"{statistics.median(lengths):.0f}, {max(lengths)}",
        "most lines a function": str(max((node.end_lineno or 0) - node.lineno + 1 for node in functions)),
        "most files in a folder": str(max(folders.values())),
        f"modules with more than {MOST_IMPORTS} imports": f"{len(heavy) / len(texts):.0%}",
        "`dict[str, Any]`, by any name": str(untyped(sources(package)).total()),
        "`Any`, in all": str(sum(isinstance(node, ast.Name) and node.id == "Any" for node in nodes)),
        "imports inside functions": str(inside),
        "import cycles": str(len(cycles(edges(package)))),
        "file names in more than one folder": str(len(twice)),
        "files that name `world_size`": str(sum("world_size" in text for text in texts.values())),
        "lines of README.md": str(len((checkout / "README.md").read_text(encoding="utf-8").splitlines())),
    }


def _imports(nodes: Iterator[ast.AST] | list[ast.stmt]) -> Iterator[ast.AST]:
    return (node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))


if __name__ == "__main__":
    chosen = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[3]
    for name, value in numbers(chosen.resolve()).items():
        sys.stdout.write(f"| {name} | {value} |\n")
