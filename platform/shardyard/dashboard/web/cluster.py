"""The API of actions: submitting and stopping jobs, resuming runs, plans and recipes."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import yaml  # type: ignore[import-untyped]

from shardyard.dashboard.index.index import Index
from shardyard.dashboard.index.ingest import read_yaml
from shardyard.dashboard.web import isolated
from shardyard.dashboard.web.answers import BadRequestError, NotFoundError, ProblemPayload, payload_of
from shardyard.dashboard.web.overrides import problems_of_page
from shardyard.errors import RecipeError, ShardyardError
from shardyard.launch import api
from shardyard.launch.schedulers.lookup import find, lost_in_words, recorded_job
from shardyard.launch.schedulers.registry import DEFAULT
from shardyard.planning.plan_text import as_dict
from shardyard.recipe.catalog.shipped import shipped_recipes
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.redaction import scrub
from shardyard.tracking.run.folder import RunFolder

# Timeout for hanging calls. A plan or submission takes seconds, or minutes on a slow machine that also trains.
CALL_SECONDS = 600.0
RESUME = "shardyard.launch.run.resume"
# A run that fails to start exits within this time; one that is still alive afterwards has started.
STARTED_SECONDS = 4.0
MOST_OVERRIDES = 100
MOST_TEXT = 2000
_MOST_PLANS = 64


def submit(index: Index, address: str | None, name: str, overrides: Sequence[str]) -> str:
    """Submit a recipe as a job; returns its id.

    Raises:
        BadRequestError: an override contains a path, or the recipe is invalid, or the cluster refuses it.
    """
    if problems := problems_of_page(overrides):
        raise BadRequestError(str(problems[0]), "overrides")
    try:
        return str(_apart("the submission", submitted, name, tuple(overrides), address, index.runs_dir))
    except ShardyardError as error:
        raise BadRequestError(str(error)) from error


def submitted(name: str, overrides: Sequence[str], address: str | None, runs_dir: Path) -> str:
    """Submit a recipe; runs in a separate process."""
    return api.submit(name, overrides, address=address, runs_dir=runs_dir).id


def planned(name: str, overrides: Sequence[str]) -> dict[str, object]:
    """A plan as plain data; runs in a separate process."""
    return dict(json.loads(json.dumps(as_dict(api.plan(name, overrides)), default=str)))


def _apart(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    return isolated.call(function, *arguments, what=what, timeout=CALL_SECONDS)


def stop(index: Index, address: str | None, name: str) -> str | None:
    """Stop a run or its job with a checkpoint; returns the scheduler of the job, None for a run that is not a job.

    Raises:
        BadRequestError: it cannot be stopped.
    """
    try:
        job = recorded_job(RunFolder.open(index.runs_dir, name))
        # The address belongs to the default scheduler; others have their own.
        here = address if job is not None and job.scheduler == DEFAULT else None
        found = find(name, index.runs_dir, address=here)
        if found.state == "lost":
            raise BadRequestError(lost_in_words(found))
        if not found.ended:
            found.stop()
    except ShardyardError as error:
        raise BadRequestError(str(error)) from error
    return found.job.scheduler.name if found.job is not None else None


def resume(index: Index, name: str) -> None:
    """Resume a run on this machine, in a process that outlives the server.

    Raises:
        BadRequestError: it fails immediately.
    """
    if index.key_of(name) is None:
        raise NotFoundError(f"There is no run {name[:100]!r}.")
    try:
        folder = RunFolder.open(index.runs_dir, name).path
    except ShardyardError as error:
        raise BadRequestError(str(error)) from error
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", RESUME, str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=output,
            start_new_session=True,
        )
        try:
            code = process.wait(timeout=STARTED_SECONDS)
        except subprocess.TimeoutExpired:
            # Reap the process when it ends, so that no zombie remains.
            threading.Thread(target=process.wait, daemon=True, name="shardyard-resumed").start()
            return
        if code != 0:
            output.seek(0)
            raise BadRequestError(_last_paragraph(output.read()))


def _last_paragraph(text: str) -> str:
    """The last paragraph of a process's output, which is its error."""
    head, found, message = text.rpartition("Error: ")
    lines = (message if found else head or text).strip().splitlines()
    return scrub("\n".join(lines[-30:])) or "it failed and did not say why"


# Recipes.


class RecipePayload(TypedDict):
    """A shipped recipe; family: its folder."""

    name: str
    description: str
    family: str


class CheckPayload(TypedDict):
    """The problems of a recipe; if there are none, its name or its plan (`plan_text.as_dict`)."""

    problems: list[ProblemPayload]
    plan: dict[str, object] | None
    name: NotRequired[str]


@functools.cache
def recipes() -> list[RecipePayload]:
    """The shipped recipes with their descriptions, unchecked."""
    found: list[RecipePayload] = []
    for shipped in shipped_recipes():
        family, _, _ = shipped.name.rpartition("/")
        try:
            fields = read_yaml(shipped.path.read_bytes())
        except (OSError, yaml.YAMLError, ValueError):
            fields = None
        description = str(fields.get("description") or "") if isinstance(fields, dict) else "It cannot be read."
        found.append({"name": shipped.name, "description": description, "family": family})
    return found


def recipe_text(name: str) -> str:
    """The text of a shipped recipe."""
    return _shipped(name).read_text(encoding="utf-8")


def _shipped(name: str) -> Path:
    """The path of a shipped recipe. Only listed names are valid, so that no other file can be read or run by its path.

    Raises:
        NotFoundError: there is no such recipe.
    """
    for shipped in shipped_recipes():
        if shipped.name == name:
            return shipped.path
    raise NotFoundError(f"There is no shipped recipe {name[:100]!r}; /api/recipes lists them.")


def checked_request(body: dict[str, object], key: str = "name") -> tuple[str, list[str]]:
    """Name and overrides of a request, with checked types.

    Raises:
        BadRequestError: they have other types.
        NotFoundError: there is no such recipe.
    """
    name, overrides = body.get(key), body.get("overrides") or []
    if not isinstance(name, str):
        raise BadRequestError(f"{key} is missing", key)
    if not isinstance(overrides, list) or len(overrides) > MOST_OVERRIDES:
        raise BadRequestError(f"overrides are a list of at most {MOST_OVERRIDES} texts", "overrides")
    for override in overrides:
        if not isinstance(override, str) or len(override) > MOST_TEXT or "\0" in override:
            raise BadRequestError(f"each override is a text of at most {MOST_TEXT} characters", "overrides")
    _shipped(name)
    return name, overrides


class Plans:
    """Plans of recipes, computed by one process at a time and cached."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[tuple[str, ...], CheckPayload] = OrderedDict()

    def check(self, name: str, overrides: Sequence[str], *, plan: bool) -> CheckPayload:
        """The problems of a recipe; if there are none and `plan` is true, its plan."""
        # Before the recipe is read, so that not even the existence of a file is revealed.
        if problems := problems_of_page(overrides):
            return {"problems": payload_of(problems), "plan": None}
        try:
            loaded: LoadedRecipe = load_recipe(name, overrides)
        except RecipeError as error:
            return {"problems": payload_of(error.problems), "plan": None}
        if not plan:
            return {"problems": [], "plan": None, "name": loaded.recipe.name}
        return self._plan(name, overrides)

    def _plan(self, name: str, overrides: Sequence[str]) -> CheckPayload:
        place = (name, *overrides)
        with self._lock:
            if (known := self._known.get(place)) is not None:
                return known
            try:
                plan = _apart("the plan", planned, name, tuple(overrides))
            except ShardyardError as error:
                return {"problems": [{"where": "", "path": "", "message": str(error)}], "plan": None}
            found: CheckPayload = {"problems": [], "plan": plan}
            self._known[place] = found
            while len(self._known) > _MOST_PLANS:
                self._known.popitem(last=False)
            return found
