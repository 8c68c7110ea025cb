"""Code from outside that a recipe uses: its objective, the objective's row format, and files beside the recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shardyard import plugins
from shardyard.errors import UsageError
from shardyard.objectives.registry import OBJECTIVES, objective_spec
from shardyard.recipe.schema import Recipe


def names_code(recipe: Recipe) -> bool:
    """Whether a recipe uses code from outside Shardyard."""
    return recipe.objective not in OBJECTIVES


TRUST = "If you know who wrote it, add --trust; otherwise leave it alone."


def refuse_code(recipe: Recipe, whose: str, remedy: str = TRUST) -> None:
    """Refuse a recipe from elsewhere that names code by reference.

    Code of an installed package, named by its entry point, is allowed: whoever installed it chose it.

    Args:
        whose: how messages call the run. remedy: what to do about it, as a sentence.

    Raises:
        UsageError: it names code, which would be executed here.
    """
    for field, reference in _references({"objective": recipe.objective}):
        raise UsageError(f"{whose} names its own code ({field}: {reference}), which would be executed here. {remedy}")


def origins(recipe: Recipe) -> dict[str, dict[str, str | None]]:
    """Of each field that names code from outside: `reference`, `package` that brings it, and `sha256` of its source.

    Raises:
        UsageError: the code is not here.
    """
    found: dict[str, plugins.Origin] = {}
    if recipe.objective not in OBJECTIVES:
        found["objective"] = plugins.origin("objectives", recipe.objective)
        rows = objective_spec(recipe.objective).rows
        if plugins.is_reference(rows) or rows in plugins.installed("formats"):
            found["rows"] = plugins.origin("formats", rows)
    return {
        field: {"reference": origin.reference, "package": origin.package, "sha256": origin.sha256}
        for field, origin in found.items()
    }


def code_files(recipe: Recipe) -> Iterator[Path]:
    """Files that a recipe names by relative path as code; they travel with a job."""
    for _, name in _references(recipe.model_dump(include={"objective"})):
        path = Path(name.rpartition(":")[0])
        if plugins.is_file_reference(name) and not path.is_absolute():
            yield path


def find_beside(data: dict[str, object], folders: Sequence[Path]) -> None:
    """Make references to files that are not below the current folder point to those beside the recipe, in place.

    Args:
        data: of a recipe.
        folders: of the recipe, then of the recipes that it extends.
    """
    for field, name in list(_references(data)):
        where, _, what = name.rpartition(":")
        if not plugins.is_file_reference(name) or Path(where).expanduser().exists():
            continue
        path = next((folder / where for folder in folders if (folder / where).is_file()), None)
        if path is not None:
            data[field] = f"{_shown(path)}:{what}"


def with_absolute_files(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of code: ranks that are started here may have another current folder."""
    if not plugins.is_file_reference(recipe.objective):
        return recipe
    where, _, what = recipe.objective.rpartition(":")
    return recipe.model_copy(update={"objective": f"{Path(where).expanduser().resolve()}:{what}"})


def _references(data: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    name = data.get("objective")
    if isinstance(name, str) and plugins.is_reference(name):
        yield "objective", name


def _shown(path: Path) -> Path:
    """Relative to the current folder if it is below it, so that it stays valid where the folder is uploaded to."""
    path = path.resolve()
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
