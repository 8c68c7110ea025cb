"""No module needs, by however long a way, a module that needs it; and no folder holds more than a person overlooks."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.module_graph import PACKAGE, cycles, edges, modules

REPOSITORY = PACKAGE.parents[1]
MOST_FILES = 25


def test_no_module_needs_one_that_needs_it() -> None:
    graph = edges()
    assert len(graph) > 300
    assert sum(map(len, graph.values())) > 1000
    found = [sorted(component) for component in cycles(graph)]
    assert not found, "\n".join(
        f"{module} imports {', '.join(sorted(graph[module] & set(component)))}"
        for component in found
        for module in component
    )


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        ({"a": ["b"], "b": ["a"]}, [{"a", "b"}]),
        ({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["a"]}, [{"a", "b", "c"}]),
        ({"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": []}, []),
        ({"a": ["b"], "b": ["a", "c"], "c": ["d"], "d": ["c"]}, [{"a", "b"}, {"c", "d"}]),
    ],
)
def test_a_cycle_is_seen(graph: dict[str, list[str]], expected: list[set[str]]) -> None:
    assert sorted(map(sorted, cycles(graph))) == sorted(map(sorted, expected))


def test_a_name_in_a_module_is_that_module() -> None:
    graph = edges()
    assert "shardyard.units" in graph["shardyard.planning.plan_text"]
    assert "shardyard.dashboard.web.api" in graph["shardyard.dashboard.web.server"]
    assert set(graph) == set(modules())


@pytest.mark.parametrize("top", ["platform", "tests", "cluster", "tokenizers", "docs"])
def test_no_folder_is_a_heap(top: str) -> None:
    folders = [REPOSITORY / top, *(path for path in (REPOSITORY / top).rglob("*") if path.is_dir())]
    heaps = {folder.relative_to(REPOSITORY).as_posix(): len(_files(folder)) for folder in folders}
    assert {folder: count for folder, count in heaps.items() if count > MOST_FILES} == {}


def _files(folder: Path) -> list[Path]:
    passing = {"__pycache__", "node_modules", ".ruff_cache", ".mypy_cache"}
    if passing & set(folder.parts):
        return []
    return [path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc"]
