"""The walls of the house: which room may import which, read from the imports themselves.

Imports inside functions and under `TYPE_CHECKING` count like any other, and so do modules that are only named in a
string, to be imported or started later: a back edge is one wherever it stands.
"""

from __future__ import annotations

import re

import pytest

from support.module_graph import PACKAGE, imports, modules, named_in_strings

# A room imports from rooms of lower layers. Rooms of one layer do not know each other.
LAYERS = {
    "redaction": -1,
    "errors": 0,
    "units": 0,
    "freed_memory": 0,
    "imports": 0,
    "replaced": 0,
    "suggest": 0,
    "plugins": 1,
    "objective specs": 2,
    "recipe": 3,
    "extras": 3,
    "planning": 4,
    # What stands here is not known in the recipe and its plan, which are the same on every host.
    "async_io": 4,
    "hardware": 4,
    "data": 5,
    "models": 5,
    "optim": 5,
    "tracking": 5,
    "objectives": 6,
    "engine": 7,
    "launch": 8,
    "cli": 9,
    "dashboard": 9,
}
# The specifications of objectives are plain data that every room reads; their code stays in its layer.
SPECS = re.compile(r"objectives\.(spec|registry|\w+\.spec)(\.|$)")
# `cli` opens every door, the dashboard's too.
OPENS_EVERYTHING = "cli"
# Each of these libraries is known to one room.
HOMES = {"deepspeed": "engine", "ray": "launch", "wandb": "tracking"}
# Where the names of the public API are.
PUBLIC = {"errors", "launch"}
# These are pure, so that a broken one is refused before any of these has been imported.
PURE = {"plugins", "objective specs", "recipe", "planning"}
TOO_HEAVY_FOR_THE_RECIPE = {"torch", "transformers", "ray", "deepspeed", "datasets", "wandb", "tokenizers"}


def violations(path: str, source: str) -> list[str]:
    """Walls that a module crosses; `path` is relative to the package, as in `data/loader.py`."""
    room = _room(path.removesuffix(".py").replace("/", "."))
    if room not in LAYERS and room != "__init__":
        return [f"{path}: {room} is not a room; give it a layer in this test and in docs/develop/architecture.md"]
    found = []
    for line, name in imports(path, source):
        if problem := _crossed(room, name):
            found.append(f"{path}:{line}: imports {name}: {problem}")
    imported = imports(path, source)
    for line, name in named_in_strings(source, modules()):
        problem = _crossed(room, name)
        # A specification names the code of its objective, for whoever makes one to import.
        if room == "objective specs" and name.startswith("shardyard.objectives."):
            continue
        if problem and (line, name) not in imported:
            found.append(f"{path}:{line}: names {name}: {problem}")
    return found


def _room(module: str) -> str:
    """The room of a module below the package, as in `data.loader`."""
    return "objective specs" if SPECS.match(module) else module.partition(".")[0]


def _crossed(room: str, name: str) -> str | None:
    top, _, rest = name.partition(".")
    if top == "shardyard":
        return _crossed_inside(room, _room(rest))
    if top in HOMES and room != HOMES[top]:
        return f"{top} is imported in {HOMES[top]}/ only"
    if room in PURE and top in TOO_HEAVY_FOR_THE_RECIPE:
        return f"{room} is pure"
    return None


def _crossed_inside(room: str, other: str) -> str | None:
    if other not in LAYERS or other == room or room == OPENS_EVERYTHING:
        return None
    if room == "__init__":
        # Only when a name is used, which `test_public_api.py` measures.
        return None if other in PUBLIC else "the package itself has the names of the public API alone"
    if LAYERS[other] == LAYERS[room]:
        return f"{room} and {other} are of one layer and do not know each other"
    if LAYERS[other] > LAYERS[room]:
        return f"{other} is above {room}"
    return None


MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_all_rooms_are_read() -> None:
    assert {_room(name.removesuffix(".py").replace("/", ".")) for name in MODULES} >= set(LAYERS)
    assert len(MODULES) > 60


@pytest.mark.parametrize("name", MODULES)
def test_no_module_crosses_a_wall(name: str) -> None:
    found = violations(name, (PACKAGE / name).read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("data/a.py", "from shardyard.engine.loop import train", "engine is above data"),
        ("data/a.py", "import shardyard.cli.main", "cli is above data"),
        ("data/a.py", "from shardyard import models", "do not know each other"),
        ("optim/a.py", "from shardyard.tracking.files import JsonlWriter", "do not know each other"),
        ("models/deep/a.py", "from ...objectives import base", "objectives is above models"),
        ("recipe/a.py", "from shardyard.objectives.base import Objective", "objectives is above recipe"),
        ("objectives/rotation/spec.py", "from shardyard.recipe.schema import Loss", "recipe is above objective specs"),
        ("objectives/registry.py", "from shardyard.objectives.base import Objective", "objectives is above objective"),
        ("objectives/rotation/spec.py", "import torch", "objective specs is pure"),
        ("models/a.py", "from .. import launch", "launch is above models"),
        ("data/a.py", "def f():\n    from shardyard.launch import driver", "data/a.py:2: "),
        ("data/a.py", "if TYPE_CHECKING:\n    from shardyard.engine.run import Job", "engine is above data"),
        ("data/a.py", "importlib.import_module('shardyard.engine.run')", "engine is above data"),
        ("dashboard/a.py", "from shardyard.cli import output", "do not know each other"),
        ("errors.py", "from shardyard.units import format_bytes", "do not know each other"),
        ("units.py", "from shardyard.recipe import plan", "recipe is above units"),
        ("__init__.py", "from shardyard.recipe.schema import Recipe", "the public API alone"),
        ("launch/a.py", "import deepspeed", "deepspeed is imported in engine/ only"),
        ("engine/a.py", "from ray import train", "ray is imported in launch/ only"),
        ("cli/a.py", "def f():\n    import wandb.sdk", "wandb is imported in tracking/ only"),
        ("recipe/a.py", "def f():\n    import torch", "recipe is pure"),
        ("recipe/a.py", "from transformers import AutoConfig", "recipe is pure"),
        ("recipe/a.py", "import datasets.features", "recipe is pure"),
        ("recipe/a.py", "__import__('ray')", "ray is imported in launch/ only"),
        ("helpers/a.py", "", "helpers is not a room"),
        ("launch/a.py", "run([python, '-m', 'shardyard.cli.main'])", "cli is above launch"),
        ("objectives/rotation/spec.py", "SPEC = 'shardyard.engine.loop:train'", "engine is above objective specs"),
        ("data/a.py", "TABLE = {'x': 'shardyard.engine.loop:train'}", "engine is above data"),
    ],
)
def test_a_crossed_wall_is_seen(path: str, source: str, expected: str) -> None:
    (found,) = violations(path, source)
    assert expected in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("__init__.py", "HOMES = {'Run': 'shardyard.launch.api', 'ShardyardError': 'shardyard.errors'}"),
        ("cli/a.py", "from shardyard import __version__\nfrom shardyard.dashboard import server"),
        (
            "data/a.py",
            "from shardyard.data.stream.reader import Cursor\nfrom . import retry\nfrom ..errors import DataError",
        ),
        ("launch/a.py", "import ray\nfrom shardyard.engine.run import Job\nfrom shardyard.units import parse_bytes"),
        ("recipe/a.py", "import raytracer\nfrom shardyard.errors import Problem"),
        ("models/a.py", "import torch\nfrom shardyard.recipe.schema import Model"),
        ("recipe/a.py", "from shardyard.objectives.registry import objective_spec"),
        ("objectives/rotation/spec.py", "from shardyard.objectives.spec import ObjectiveSpec"),
        ("objectives/rotation/spec.py", "LOSS = 'shardyard.objectives.classification:make'"),
        ("objectives/rotation/rows.py", "import torch\nfrom shardyard.data.formats.inputs import Context"),
    ],
)
def test_an_open_door_is_no_wall(path: str, source: str) -> None:
    assert violations(path, source) == []
