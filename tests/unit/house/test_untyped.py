"""Mappings without a shape: how many `dict[str, Any]` the package still has, whatever they are called.

A dataclass or a TypedDict says what is in it, and the type checker knows when that is not so. `object` as the type of
the values says that nobody looks at them here. What is left is for documents of others: JSON Schema, Kubernetes, Ray.
"""

from __future__ import annotations

import pytest

from support.house.untyped import DICTS, MAPPINGS, sources, untyped
from support.module_graph import PACKAGE

# The numbers of today: they may fall, and then this list follows.
MOST = {DICTS: 12, MAPPINGS: 48}


@pytest.mark.slow
@pytest.mark.parametrize("names", MOST, ids=["dict", "Mapping"])
def test_no_more_mappings_are_without_a_shape(names: frozenset[str]) -> None:
    found = untyped(sources(PACKAGE), names)
    listed = "\n".join(f"{count:4} {module}" for module, count in sorted(found.items()))
    assert found.total() <= MOST[names], f"{found.total()} of at most {MOST[names]}; name their fields\n{listed}"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("def f(a: dict[str, Any]) -> dict[str, Any]: ...", 2),
        ("a: dict[str, list[dict[str, Any]]] = {}", 1),
        ("a = cast('dict[str, Any]', b)", 1),
        ("def f(a: 'dict[str, Any] | None') -> None: ...", 1),
        ("import typing\na: typing.Dict[str, typing.Any] = {}", 1),
        ("Row = dict[str, Any]\ndef f(a: Row) -> list[Row]: ...", 3),
        ("Row = dict[str, Any] | None\na: Row = None", 2),
        ("Row: TypeAlias = 'dict[str, Any]'\n", 1),
        ("Row = dict[str, Any]\nLine = Row\na: Line = {}", 3),
        ("Callback = Callable[[dict[str, Any]], None]\ndef f(a: Callback, b: Callback): ...", 1),
        ("a: dict[str, object] = {}\nb: dict[int, Any] = {}\nc: Mapping[str, Any] = {}\nRow = 3\nRow", 0),
    ],
)
def test_a_mapping_without_a_shape_is_seen(source: str, count: int) -> None:
    assert untyped({"shardyard.a": source}).total() == count


def test_an_alias_counts_where_it_is_imported() -> None:
    modules = {
        "shardyard.a": "Row = dict[str, Any]",
        "shardyard.b": "from shardyard.a import Row\nfrom shardyard import a as other\ndef f(x: Row) -> other.Row: ...",
        "shardyard.c": "from shardyard.b import Row as Line\nx: Line = {}\ny: Row = {}",
        "shardyard.d": "class Row: ...\nx: Row",
    }
    assert untyped(modules) == {"shardyard.a": 1, "shardyard.b": 2, "shardyard.c": 1}
