"""Finding tests that sleep or keep their own deadline: forbidden and allowed cases of `unit/house/test_house.py`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parents[1]
# The module with the shared waits; and measurements that are run by hand, where durations matter.
MAY_SLEEP = {"support/waiting.py", "benchmarks"}
# Tests about time itself: (file, function) and why.
ALLOWED = {
    ("unit/engine/test_checkpoint_files.py", "die_of"): "the writer is killed at moments that nobody chose",
    ("e2e/test_jobs.py", "_pump"): "a slow line",
    ("chaos/inject/sitecustomize.py", "reach"): "a signal to itself has arrived, or a test lets it go on",
    ("chaos/soak.py", "soak"): "faults come at random moments",
    ("support/hold.py", "on_step"): "a step lasts as long as a test holds it",
    ("support/reliability/faults.py", "before_forward"): "a rank that is slow",
    ("gpu_check/run.py", "main"): "parts for which no time is left on a lent machine are not begun",
    ("breadth/matrix.py", "run"): "looks after processes that end by themselves or at their limit",
    ("browser/conftest.py", "until"): "how a page lets time go by between two looks",
    ("browser/conftest.py", "unchanged"): "how a page lets time go by between two looks",
}
CLOCKS = {"monotonic", "perf_counter"}


def faults(tree: ast.AST, function: str = "") -> Iterator[tuple[str, int, str]]:
    """Function, line and kind of each sleep and each deadline in a test."""
    for node in ast.iter_child_nodes(tree):
        inside = node.name if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(node, ast.Call) and _called(node) in ("sleep", "wait_for_timeout"):
            yield inside, node.lineno, "sleeps"
        # `time.monotonic() + 60`: the beginning of a loop that waits on its own.
        adds = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)
        if adds and any(isinstance(one, ast.Call) and _called(one) in CLOCKS for one in (node.left, node.right)):
            yield inside, node.lineno, "keeps a deadline"
        yield from faults(node, inside)


def _called(call: ast.Call) -> str:
    function = call.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def found() -> dict[str, list[tuple[str, int, str]]]:
    """Faults of each file, allowed ones too."""
    files = {str(path.relative_to(TESTS)): path for path in sorted(TESTS.rglob("*.py"))}
    looked = {name: path for name, path in files.items() if not MAY_SLEEP & {name, name.partition("/")[0]}}
    return {name: list(faults(ast.parse(path.read_text(encoding="utf-8")))) for name, path in looked.items()}
