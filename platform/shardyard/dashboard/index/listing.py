"""The table of runs: filtered by a query, sorted by any field or metric, in pages."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import TypedDict

from shardyard.dashboard.index.query import QueryError, parse
from shardyard.dashboard.index.query_sql import COLUMNS, STATISTICS, Compiler, Names, dotted

MOST_ROWS = 1000
MOST_COLUMNS = 40
_SHOWN = (
    *("id", "name", "state", "step", "total_steps", "loss", "eval_loss", "sweep", "world_size", "attempts", "problem"),
    *("waiting", "created", "created_text", "tags", "spark", "version", "rows"),
)


@dataclass(frozen=True)
class ListingQuery:
    """A request for a page of the table. `sort` is `field[:last|best|max|smoothed][:asc|desc]`."""

    query: str = ""
    sort: str = ""
    columns: tuple[str, ...] = ()
    offset: int = 0
    limit: int = 100
    group: str = ""


class RunRow(TypedDict):
    """A run in the form sent to the page.

    recipe: its name. group: the sweep of the run, else its name. values: of the requested columns.
    cursor: the number of metrics records read so far.
    """

    id: str
    name: str | None
    state: str
    step: int
    total_steps: int | None
    loss: float | None
    eval_loss: float | None
    sweep: str | None
    world_size: int | None
    attempts: int
    problem: str | None
    waiting: str | None
    age_seconds: float | None
    created: str | None
    tags: list[str]
    recipe: str | None
    group: str | None
    sparkline: list[float | None]
    values: dict[str, object]
    cursor: int


class ChangedRow(RunRow):
    """A changed run, and the version of the index with the change."""

    version: int


def names_of(connection: sqlite3.Connection) -> Names:
    """All names that a query can use."""
    metrics = [row[0] for row in connection.execute("SELECT name FROM names")]
    paths = [row[0] for row in connection.execute("SELECT path FROM paths")]
    return Names([name for name in metrics if name not in ("step", "time")], paths)


def list_runs(connection: sqlite3.Connection, wanted: ListingQuery) -> dict[str, object]:
    """A page of the table.

    Raises:
        QueryError: the query, the sort order or a column is invalid.
    """
    names = names_of(connection)
    compiler = Compiler(names)
    where = compiler.where(parse(wanted.query))
    now = {"now": time.time()}
    total = connection.execute(f"SELECT COUNT(*) FROM runs r WHERE {where}", compiler.parameters | now).fetchone()[0]
    groups = _groups(connection, where, compiler.parameters | now, wanted.group)
    order = _order(wanted, compiler)
    extra = "".join(f", {_column(name, compiler)} AS value{i}" for i, name in enumerate(wanted.columns[:MOST_COLUMNS]))
    shown = ", ".join(f"r.{name}" for name in _SHOWN)
    limits = {"limit": max(0, min(wanted.limit, MOST_ROWS)), "offset": max(0, wanted.offset)}
    rows = connection.execute(
        f"SELECT {shown}{extra} FROM runs r WHERE {where} ORDER BY {order} LIMIT :limit OFFSET :offset",
        compiler.parameters | now | limits,
    ).fetchall()
    return {
        "total": total,
        "runs": [row_of(row, wanted.columns) for row in rows],
        "columns": [
            *COLUMNS,
            "tag",
            "group",
            *map(dotted, sorted(names.metrics)),
            *(f"recipe.{p}" for p in names.recipe),
        ],
        "groups": groups,
    }


def row_of(row: sqlite3.Row, columns: tuple[str, ...] = ()) -> RunRow:
    """A run in the form sent to the page, with the values of `columns`."""
    return {
        "id": row["id"],
        "name": row["name"],
        "state": row["state"],
        "step": row["step"],
        "total_steps": row["total_steps"],
        "loss": row["loss"],
        "eval_loss": row["eval_loss"],
        "sweep": row["sweep"],
        "world_size": row["world_size"],
        "attempts": row["attempts"],
        "problem": row["problem"],
        "waiting": row["waiting"],
        "age_seconds": None if row["created"] is None else max(0.0, time.time() - row["created"]),
        "created": row["created_text"],
        "tags": tags_of(row["tags"]),
        "recipe": row["name"],
        "group": row["sweep"] or row["name"],
        "sparkline": json.loads(row["spark"]) if row["spark"] else [],
        "values": {name: row[f"value{index}"] for index, name in enumerate(columns[:MOST_COLUMNS])},
        "cursor": row["rows"],
    }


def tags_of(text: str) -> list[str]:
    """Tags from the text stored in the index."""
    return [tag for tag in text.split("\n") if tag]


def rows_since(
    connection: sqlite3.Connection, version: int, most: int = MOST_ROWS
) -> tuple[list[ChangedRow], list[str]]:
    """Runs changed since a version of the index, and ids of removed runs."""
    shown = ", ".join(f"r.{name}" for name in _SHOWN)
    rows = connection.execute(
        f"SELECT {shown} FROM runs r WHERE r.version > ? ORDER BY r.version LIMIT ?", (version, most)
    ).fetchall()
    gone = connection.execute("SELECT id FROM gone WHERE version > ? LIMIT ?", (version, most)).fetchall()
    return [{**row_of(row), "version": row["version"]} for row in rows], [row[0] for row in gone]


def _column(name: str, compiler: Compiler) -> str:
    field, _, statistic = name.partition(":")
    if statistic and statistic not in STATISTICS:
        raise QueryError(f"{statistic!r} is none of {', '.join(STATISTICS)}", 0, name)
    return compiler.value(field, statistic or "last")


def _order(wanted: ListingQuery, compiler: Compiler) -> str:
    newest = "r.created DESC, r.id"
    first = f"{_group(wanted.group)}, " if wanted.group else ""
    if not wanted.sort:
        return f"{first}{newest}"
    field, *rest = wanted.sort.split(":")
    statistic = next((part for part in rest if part in STATISTICS), "last")
    unknown = [part for part in rest if part not in (*STATISTICS, "asc", "desc")]
    if unknown:
        raise QueryError(
            f"{unknown[0]!r} is not a sort order; write field:last|best|max|smoothed:asc|desc", 0, wanted.sort
        )
    expression = compiler.value(field, statistic)
    direction = "DESC" if "desc" in rest else "ASC"
    # Runs without a value come last in either order.
    return f"{first}({expression}) IS NULL, ({expression}) {direction}, {newest}"


def _group(group: str) -> str:
    expressions = {"sweep": "r.sweep", "recipe": "r.name", "state": "r.state"}
    if group not in expressions:
        raise QueryError(f"runs are grouped by {', '.join(expressions)}, not by {group!r}", 0, group)
    return expressions[group]


def _groups(
    connection: sqlite3.Connection, where: str, parameters: dict[str, object], group: str
) -> list[dict[str, object]]:
    if not group:
        return []
    name = _group(group)
    rows = connection.execute(
        f"SELECT {name}, COUNT(*), MIN(r.eval_loss), SUM(r.state = 'running') FROM runs r WHERE {where} GROUP BY {name}"
        " ORDER BY MAX(r.created) DESC LIMIT 1000",
        parameters,
    ).fetchall()
    return [{"name": row[0], "runs": row[1], "best_eval_loss": row[2], "running": row[3]} for row in rows]
