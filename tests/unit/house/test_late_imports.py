"""Imports inside functions: where start-up time, or a library that may be missing, needs them. One list, with reasons.

An import at the top shows what a file depends on, and fails when the program starts instead of an hour later.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from functools import cache

import pytest

from support.module_graph import PACKAGE, imports, modules

# Files, or folders with a slash at their end → what an import at the top would cost.
LATE = {
    "cli/commands/": "what takes tens of milliseconds: `--help` and completion read the file of a command too",
    "cli/doctor/checks.py": "a check asks for a package that may be missing or broken",
    "cli/doctor/doctor.py": "rich, for output to a terminal alone",
    "cli/doctor/plugins.py": "data formats import transformers, which only the process needs that imports plugins",
    "cli/view/complete.py": "a shell waits for the completion of one name",
    "cli/view/jobs.py": "schedulers, where a job is shown",
    "cli/view/output.py": "rich, for output to a terminal alone",
    "dashboard/web/documents.py": "torch, in the process that reads documents alone",
    "dashboard/web/data_page.py": "torch, in the process that reads data alone",
    "dashboard/web/sweeps.py": "the fit of a scaling law imports torch",
    "data/build/hashes.py": "rensa is an extra",
    "data/filters/language.py": "lingua is an extra",
    "data/filters/length.py": "transformers, which only lengths in tokens need",
    "data/sources/corpus.py": "some Pythons come without pydoc_data",
    "engine/findings.py": "Pillow and datasets, which a plan of text does without",
    "engine/inference/lm_eval.py": "lm-eval is an extra",
    "launch/__init__.py": "`import shardyard` is instant; the public functions import what they do",
    "launch/api.py": "torch and Ray, where a run is carried out or loaded",
    "launch/jobs/secrets.py": "Ray, in the process that takes the variables",
    "launch/jobs/spec.py": "the entry point of a job imports the standard library alone",
    "launch/local_cluster/status.py": "Ray reads its token from the environment when it is imported",
    "launch/ray/process_group.py": "torch, in workers alone",
    "launch/ray/rank_actor.py": "torch and DeepSpeed, in workers alone",
    "launch/ray/ready.py": "torch, in workers alone",
    "launch/run/driver.py": "torch and DeepSpeed, where a run trains in this process",
    "launch/run/initial.py": "torch, where a recipe starts from weights",
    "launch/run/plans.py": "Ray, where a cluster is named",
    "launch/run/prepare.py": "torch and transformers: a plan whose sizes are remembered does without",
    "launch/run/process.py": "Ray, once the run has its process",
    "launch/run/world.py": "torch, where there is a GPU",
    "launch/schedulers/": "Ray and the Kubernetes client, once a scheduler is asked",
    "launch/sweep/plot.py": "matplotlib is an extra",
    "launch/sweep/law_fits.py": "scipy is an extra",
    "launch/sweep/search.py": "optuna is an extra",
    "models/adapters/adapters.py": "peft takes half a second, which only adapters need",
    "models/adapters/nf4.py": "bitsandbytes is an extra",
    "models/kernels.py": "transformers imports its trainer and peft with it, and peft bitsandbytes",
    "models/quirks.py": "peft takes half a second, which only adapters need",
    "optim/eight_bits.py": "bitsandbytes is an extra",
    "recipe/seen_columns.py": "pyarrow takes a tenth of a second, which only Parquet files need",
    "recipe/seen_values.py": "pyarrow takes a tenth of a second, which only Parquet files need",
    "tracking/wandb/": "wandb takes half a second, which runs without it spare",
}


@cache
def late(source: str) -> list[str]:
    """`line: import` of each import inside a function."""
    inner = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = {node for function in inner for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)}
    return [f"{node.lineno}: {ast.unparse(node)}" for node in sorted(found, key=lambda node: node.lineno)]


def _entry(name: str) -> str | None:
    return next((entry for entry in LATE if name == entry or (entry[-1] == "/" and name.startswith(entry))), None)


@pytest.mark.slow
def test_imports_inside_functions_are_those_of_the_list() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): late(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py")}
    wrong = [f"{name}:{one}" for name, some in sorted(found.items()) if _entry(name) is None for one in some]
    assert not wrong, "import at the top, or say in this test why not:\n" + "\n".join(wrong)


def test_a_late_import_is_of_what_takes_time() -> None:
    """The standard library and what a file has imported anyway gain nothing by waiting."""
    light = {"threading", "webbrowser", "wave", "json", "os", "re", "shutil", "subprocess", "datetime", "time"}
    found = [
        f"{path.relative_to(PACKAGE)}:{one}"
        for path in PACKAGE.rglob("*.py")
        for one in late(path.read_text("utf-8"))
        if one.split()[2].partition(".")[0] in light
    ]
    assert found == []


@pytest.mark.slow
def test_a_late_import_is_of_what_is_not_there_already() -> None:
    """What the top of a file imports, directly or by a long way, costs nothing to import at the top as well."""
    at_the_top = {
        name: {other for _, other in top_level(name, path.read_text("utf-8")) if other in modules()}
        for name, path in modules().items()
    }
    found = []
    for name, path in modules().items():
        source = path.read_text("utf-8")
        for other in late_modules(name, source) & reached(name, at_the_top):
            found.append(f"{path.relative_to(PACKAGE)}: {other}")
    assert found == []


def top_level(name: str, source: str) -> Iterator[tuple[int, str]]:
    """The modules that are imported with a module: neither in functions nor for the type checker alone."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((node.lineno, other) for other in _modules_of(name, node))


def late_modules(name: str, source: str) -> set[str]:
    inner = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    nodes = [node for function in inner for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {other for node in nodes for other in _modules_of(name, node)}


def _modules_of(name: str, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
    path = modules()[name].relative_to(PACKAGE).as_posix()
    for _, imported in imports(path, ast.unparse(node)):
        yield from (one for one in (imported, imported.rpartition(".")[0]) if one in modules())


def reached(start: str, graph: Mapping[str, Collection[str]]) -> set[str]:
    """All that is imported with a module, itself not among it."""
    found: set[str] = set()
    left = [start]
    while left:
        new = set(graph[left.pop()]) - found
        found |= new
        left += new
    return found - {start}


def test_what_is_there_already_is_seen() -> None:
    graph = {"a": ["b"], "b": ["c"], "c": ["b"], "d": ["a"]}
    assert reached("a", graph) == {"b", "c"}
    source = "from shardyard.units import a\ndef f():\n    import shardyard.errors\n    from shardyard import hardware"
    assert [name for _, name in top_level("shardyard.suggest", source)] == ["shardyard.units"]
    assert late_modules("shardyard.suggest", source) >= {"shardyard.errors", "shardyard.hardware"}


@pytest.mark.parametrize(
    ("source", "count"),
    [("import os", 0), ("def f():\n    import os", 1), ("class A:\n    def f(self):\n        from a import b", 1)],
)
def test_an_import_inside_a_function_is_seen(source: str, count: int) -> None:
    assert len(late(source)) == count
