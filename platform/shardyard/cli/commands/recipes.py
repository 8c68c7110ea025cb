"""`shardyard recipes`: list, show and copy the shipped recipes. Fast, because recipes are not checked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli.options import AsJson, Quiet
from shardyard.cli.view import complete, output
from shardyard.errors import RecipeError, UsageError
from shardyard.recipe.catalog.descriptions import description_of
from shardyard.recipe.catalog.shipped import find_recipe, shipped_recipes, shipped_sweeps

recipes = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, show and copy the shipped recipes.",
)


@recipes.command("list")
def list_recipes(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the shipped recipes."""
    rows = [_row(recipe.name, recipe.path) for recipe in shipped_recipes()]
    rows += [_row(found.name, found.path) for found in shipped_sweeps()]
    if as_json:
        output.print_json(rows)
    elif quiet:
        for row in rows:
            output.line(row["name"])
    else:
        output.print_table(("recipe", "description"), [(row["name"], row["description"]) for row in rows])


def _row(name: str, path: Path) -> dict[str, str]:
    description = description_of(path)
    if description is None:
        description = _inherited(name, path)
    return {"name": name, "path": str(path), "description": description}


def _inherited(name: str, path: Path) -> str:
    """The description of a recipe without one; broken recipes are listed as such, because users edit
    checkouts."""
    from shardyard.recipe.loading.load import load_recipe

    try:
        return load_recipe(str(path)).recipe.description
    except RecipeError as error:
        return f"broken, {len(error.problems)} problems; see `shardyard validate {name}`"


@recipes.command("show")
def show_recipe(
    name: Annotated[str, typer.Argument(autocompletion=complete.recipe_names, help="Name or path of a recipe.")],
) -> None:
    """Print a recipe's YAML unchanged."""
    output.print_yaml(find_recipe(name).read_text(encoding="utf-8", errors="replace"))


@recipes.command("copy")
def copy_recipe(
    name: Annotated[str, typer.Argument(autocompletion=complete.recipe_names, help="Name or path of a recipe.")],
    destination: Annotated[Path | None, typer.Argument(help="File or folder. Default: the current folder.")] = None,
) -> None:
    """Copy a recipe for editing; never overwrites."""
    source = find_recipe(name)
    target = destination or Path()
    if target.is_dir():
        target /= source.name
    if target.exists():
        raise UsageError(f"{target} exists already; name another file: `shardyard recipes copy {name} FILE`.")
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}; create it first, or name another file.")
    shutil.copyfile(source, target)
    output.line(str(target))
