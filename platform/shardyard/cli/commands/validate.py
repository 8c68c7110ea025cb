"""`shardyard validate` and `explain`: checking recipes, and explaining fields and derived values."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer

from shardyard.cli.options import AsJson, Overrides
from shardyard.cli.view import complete, output
from shardyard.errors import RecipeError, UsageError
from shardyard.recipe.catalog.shipped import find_recipe, shipped_recipes
from shardyard.recipe.explain import FieldExplanation, explain_field, is_field
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.rules.causality import causality_note
from shardyard.recipe.rules.values import value_notes
from shardyard.recipe.sweep.load import is_sweep, load_sweep
from shardyard.recipe.synonyms import synonym
from shardyard.suggest import nearest


def validate(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE", autocompletion=complete.recipe_names, help="Paths or names of shipped recipes."
        ),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Check recipes and report every problem, without starting anything."""
    bases = [name for name in names if len(names) > 1 and Path(name).name.startswith("_")]
    if bases and not as_json:  # bases among the files of `validate recipes/gpt/*.yaml`
        output.line(f"skipped: {', '.join(bases)} (a base that recipes extend)")
    names = [name for name in names if name not in bases]
    outcomes = [_outcome(name, overrides or []) for name in names]
    if as_json:
        output.print_json([_json_outcome(name, outcome) for name, outcome in zip(names, outcomes, strict=True)])
    else:
        for outcome in outcomes:
            if isinstance(outcome, str):
                output.line(outcome)
    errors = [outcome for outcome in outcomes if isinstance(outcome, RecipeError)]
    if errors:
        raise UsageError("\n".join(str(error) for error in errors))


def _outcome(name: str, overrides: list[str]) -> str | RecipeError:
    try:
        if is_sweep(name):
            found = load_sweep(name, overrides)
            return f"ok: {found.sweep.name} ({found.path}), a sweep"
        loaded = load_recipe(name, overrides)
    except RecipeError as error:
        return error
    note = causality_note(loaded.recipe)
    notes = [*([note] if note is not None else []), *value_notes(loaded.recipe)]
    return f"ok: {loaded.recipe.name} ({loaded.path})" + "".join(f"\n  note: {note}" for note in notes)


def _json_outcome(name: str, outcome: str | RecipeError) -> dict[str, object]:
    problems = outcome.problems if isinstance(outcome, RecipeError) else ()
    listed = [{"where": p.where, "path": p.path, "message": p.message} for p in problems]
    return {"recipe": name, "ok": not problems, "problems": listed}


def explain(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="FIELD|RECIPE",
            autocompletion=complete.recipes_and_fields,
            help="Such as train.global_batch, or a recipe.",
        ),
    ],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Explain a field, or the derived values of a recipe."""
    if is_field(subject):
        _print_explanation(explain_field(subject), as_json)
        return
    try:
        loaded = load_recipe(subject, overrides or [])
    except RecipeError as error:
        if synonym(subject.rpartition(".")[2]) is None and (
            _is_recipe(subject) or nearest(subject, [recipe.name for recipe in shipped_recipes()])
        ):
            raise error
        explanation = explain_field(subject)
        _print_explanation(explanation, as_json)
        return
    from shardyard.cli.commands.plan import explain_recipe

    explain_recipe(loaded)


def _is_recipe(subject: str) -> bool:
    try:
        find_recipe(subject)
    except RecipeError:
        return "/" in subject or subject.endswith((".yaml", ".yml"))
    return True


def _print_explanation(explanation: FieldExplanation, as_json: bool) -> None:
    if as_json:
        output.print_json(
            {
                "path": explanation.path,
                **({"note": explanation.note} if explanation.note else {}),
                "meaning": explanation.meaning,
                "type": explanation.type,
                **{label: text for label, text in explanation.details() if text},
                "fields": dict(explanation.fields),
            }
        )
    elif not output.is_terminal():
        output.line(str(explanation))
    else:
        label = max((len(name) for name, _ in explanation.fields), default=0)
        for line in str(explanation).splitlines():
            below = "  " if not line.startswith(" ") else " " * (6 + label) if line.startswith("    ") else "    "
            output.line("\n".join(textwrap.wrap(line, output.width(), subsequent_indent=below, break_long_words=False)))
