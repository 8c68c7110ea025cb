"""The data of a recipe before a launch: its first rows, made by a separate process without network access."""

from __future__ import annotations

import shlex
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request

from shardyard.dashboard.web import isolated
from shardyard.dashboard.web.answers import BadRequestError
from shardyard.dashboard.web.cluster import checked_request
from shardyard.dashboard.web.documents import OFFLINE
from shardyard.dashboard.web.overrides import problems_of_page
from shardyard.errors import ShardyardError
from shardyard.launch.run.initial import for_planning
from shardyard.recipe.loading.load import load_recipe
from shardyard.redaction import scrub

LIMIT_SECONDS = 180.0
WAIT_SECONDS = 60.0
MOST_ROWS = 16
# Rows that are made for the numbers.
SAMPLE = 64
_MOST_KNOWN = 16


class DataPages:
    """Answers by recipe and overrides, computed by one process at a time and cached.

    Besides Shardyard's own data, files are read only from `folders`: users of the page did not choose what the user
    who started the server can read.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = tuple(folders)
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str | int, ...], dict[str, object]] = OrderedDict()

    def of(self, name: str, overrides: Sequence[str], rows: int, *, again: bool) -> dict[str, object]:
        """The inspection as plain data (`data_inspection.Inspection`).

        Raises:
            BadRequestError: an override is refused, or the data cannot be read.
        """
        if problems := problems_of_page(overrides):
            raise BadRequestError(str(problems[0]), "overrides")
        place: tuple[str | int, ...] = (rows, name, *overrides)
        if not self._lock.acquire(timeout=WAIT_SECONDS):
            raise BadRequestError("The data of another recipe is being read; try again when it is there.")
        try:
            if (known := self._known.get(place)) is not None and not again:
                self._known.move_to_end(place)
                return known
            found = self._read(name, overrides, rows)
            self._known[place] = found
            while len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
            return found
        finally:
            self._lock.release()

    def _read(self, name: str, overrides: Sequence[str], rows: int) -> dict[str, object]:
        command = _command(name, overrides)
        try:
            found: dict[str, object] = isolated.call(
                inspected,
                name,
                tuple(overrides),
                rows,
                self._folders,
                what="Reading the data",
                timeout=LIMIT_SECONDS,
                environment=OFFLINE,
            )
        except isolated.CallTimeoutError as error:
            raise BadRequestError(
                f"Reading the data takes longer than {LIMIT_SECONDS:.0f} s. In a terminal: {command}"
            ) from error
        except ShardyardError as error:
            raise BadRequestError(scrub(" ".join(str(error).split())[:800]) or "The data cannot be read.") from error
        return {**found, "command": command}


def data(request: Request, body: dict[str, object]) -> dict[str, object]:
    """`POST /api/recipes/data`: {name, overrides, rows, again}."""
    name, overrides = checked_request(body)
    rows = body.get("rows", 6)
    if not isinstance(rows, int) or isinstance(rows, bool) or not 1 <= rows <= MOST_ROWS:
        raise BadRequestError(f"rows is a number from 1 to {MOST_ROWS}", "rows")
    pages: DataPages = request.app.state.data
    return pages.of(name, overrides, rows, again=body.get("again") is True)


def inspected(name: str, overrides: Sequence[str], rows: int, folders: Sequence[Path]) -> dict[str, object]:
    """The inspection of a recipe's data without secrets; runs in a separate process without network access.

    Args:
        folders: the runs folder, and others whose files may be read.

    Raises:
        ShardyardError: the recipe is invalid, or its data cannot be read, or lies outside `folders`.
    """
    from shardyard.engine.inference.data_inspection import as_json, inspect_data
    from shardyard.engine.inference.step_sources import check_sources, refuse_network

    recipe = load_recipe(name, overrides).recipe
    recipe = for_planning(recipe, folders[0])
    check_sources(recipe, folders, _command(name, overrides))
    refuse_network()
    return dict(_scrubbed(as_json(inspect_data(recipe, max(SAMPLE, rows), rows, media=True))))


def _scrubbed(value: Any) -> Any:
    """Texts without secrets; data URLs stay."""
    if isinstance(value, dict):
        return {key: _scrubbed(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_scrubbed(inner) for inner in value]
    return scrub(value) if isinstance(value, str) and not value.startswith("data:") else value


def _command(name: str, overrides: Sequence[str]) -> str:
    return " ".join(["shardyard data inspect", shlex.quote(name), *(f"-s {shlex.quote(one)}" for one in overrides)])
