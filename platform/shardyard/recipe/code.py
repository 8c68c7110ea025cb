"""Custom code that a recipe names, such as its objective, model, hooks and trackers, and files next to the recipe."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shardyard import plugins
from shardyard.errors import UsageError
from shardyard.objectives.registry import OBJECTIVES, objective_spec
from shardyard.recipe.schema import Recipe

# The folder with a run's code files, and the table in it: path in the recipe → path of the copy.
CODE_FOLDER = "code"
CODE_TABLE = "files.json"
# Built-in trackers, which have separate sections.
TRACKERS = ("wandb",)


@dataclass(frozen=True)
class Named:
    """A name of code in a recipe's plain data: its field, the kind of code, and its position."""

    field: str
    kind: plugins.Kind
    name: str
    section: dict[str, object]
    key: str


def named_code(data: dict[str, object]) -> Iterator[Named]:
    """Every field of a recipe that may name code and holds text; the data may be from a broken recipe."""
    places: list[tuple[str, plugins.Kind, object, str]] = [("objective", "objectives", data, "objective")]
    places.append(("model.module", "models", data.get("model"), "module"))
    hooks = data.get("hooks")
    for index, hook in enumerate(hooks if isinstance(hooks, list) else ()):
        places.append((f"hooks[{index}].name", "hooks", hook, "name"))
    tracking = data.get("tracking")
    trackers = tracking.get("trackers") if isinstance(tracking, dict) else None
    for index, tracker in enumerate(trackers if isinstance(trackers, list) else ()):
        places.append((f"tracking.trackers[{index}].name", "trackers", tracker, "name"))
    for field, kind, section, key in places:
        if isinstance(section, dict) and isinstance(section.get(key), str):
            yield Named(field, kind, section[key], section, key)


def names_code(recipe: Recipe) -> bool:
    """Whether the sizes of the model depend on custom code."""
    return recipe.objective not in OBJECTIVES or recipe.model.module is not None


TRUST = "If you know who wrote it, add --trust; otherwise leave it alone."
# Fields whose code is also executed after training, to use a run; hooks and trackers run only in training.
_USED_AFTERWARDS = ("objective", "model.module")


def executed_afterwards(data: dict[str, object]) -> Iterator[Named]:
    """The code that a recipe names by reference and that sampling, evaluation and export of a run execute."""
    for named in named_code(data):
        if named.field in _USED_AFTERWARDS and plugins.is_reference(named.name):
            yield named


def refuse_code(recipe: Recipe, whose: str, remedy: str = TRUST) -> None:
    """Reject a recipe from elsewhere that names code by reference.

    Code of an installed package, named by its entry point, is allowed, because the user chose to install it.

    Args:
        whose: the name of the run in messages. remedy: advice for the user, as a sentence.

    Raises:
        UsageError: the recipe names code, which would be executed here.
    """
    for named in executed_afterwards(recipe.model_dump()):
        raise UsageError(
            f"{whose} names its own code ({named.field}: {named.name}), which would be executed here. {remedy}"
        )


def origins(recipe: Recipe) -> dict[str, dict[str, str | None]]:
    """For each field that names custom code: `reference`, `package` that provides it, and `sha256` of its source.

    Raises:
        UsageError: the code is not available.
    """
    found: dict[str, plugins.Origin] = {}
    for named in named_code(recipe.model_dump()):
        if named.name in OBJECTIVES and named.kind == "objectives":
            continue
        found[named.field] = plugins.origin(named.kind, named.name)
    if recipe.objective not in OBJECTIVES:
        rows = objective_spec(recipe.objective).rows
        if plugins.is_reference(rows) or rows in plugins.installed("formats"):
            found["rows"] = plugins.origin("formats", rows)
    return {
        field: {"reference": origin.reference, "package": origin.package, "sha256": origin.sha256}
        for field, origin in found.items()
    }


def code_files(recipe: Recipe) -> Iterator[Path]:
    """Existing files that a recipe names as code, each once; they are sent with a job."""
    names = [named.name for named in named_code(recipe.model_dump()) if plugins.is_file_reference(named.name)]
    for path in dict.fromkeys(Path(name.rpartition(":")[0]) for name in names):
        if path.expanduser().is_file():
            yield path


def find_beside(data: dict[str, object], folders: Sequence[Path]) -> None:
    """Make references to files that do not exist from the current folder point to files next to the recipe, in place.

    Args:
        data: of a recipe.
        folders: of the recipe, then of the recipes that it extends.
    """

    def beside(where: Path) -> Path | None:
        if where.expanduser().exists():
            return None
        path = next((folder / where for folder in folders if (folder / where).is_file()), None)
        return _shown(path) if path is not None else None

    replace_files(data, beside)


def kept_files(run: Path) -> dict[str, str]:
    """The copies of code in a run folder: path in the recipe → path within the folder `code`."""
    try:
        table = json.loads((run / CODE_FOLDER / CODE_TABLE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(path): str(copy) for path, copy in table.items()} if isinstance(table, dict) else {}


def lead_to_kept(data: dict[str, object], run: Path) -> bool:
    """Make references point to the copies of code in a run folder, in place, even if the folder was moved.

    Returns whether any reference was replaced.
    """
    table, root = kept_files(run), run.resolve() / CODE_FOLDER

    def copy(where: Path) -> Path | None:
        relative = table.get(str(where))
        if relative is None and where.parent.parent.name == CODE_FOLDER:
            relative = f"{where.parent.name}/{where.name}"
        return root / relative if relative is not None and (root / relative).is_file() else None

    return replace_files(data, copy)


def with_file_names(recipe: Recipe) -> Recipe:
    """The recipe with only the file names of its code, to compare a submitted recipe with the run's copy."""
    data = recipe.model_dump()
    return Recipe.model_validate(data) if replace_files(data, lambda where: Path(where.name)) else recipe


def with_absolute_files(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of code, because ranks started on this machine may have another current folder."""
    data = recipe.model_dump()
    changed = replace_files(data, lambda where: where.expanduser().resolve())
    return Recipe.model_validate(data) if changed else recipe


def replace_files(data: dict[str, object], other: Callable[[Path], Path | None]) -> bool:
    """Replace the code files in a recipe's plain data, in place; None keeps one. Returns whether any was replaced."""
    changed = False
    for named in list(named_code(data)):
        where, _, what = named.name.rpartition(":")
        path = other(Path(where)) if plugins.is_file_reference(named.name) else None
        if path is not None:
            named.section[named.key] = f"{path}:{what}"
            changed = True
    return changed


def _shown(path: Path) -> Path:
    """The path relative to the current folder if it is below it, so that it is still valid after an upload."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
