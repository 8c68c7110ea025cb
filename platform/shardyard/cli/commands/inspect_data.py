"""`shardyard data inspect`: the data of a recipe as training will see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.options import AsJson, Overrides, RecipeName
from shardyard.cli.view import output
from shardyard.recipe.loading.load import load_recipe
from shardyard.tracking.run.folder import runs_folder
from shardyard.units import format_count

if TYPE_CHECKING:
    from shardyard.engine.inference.data_inspection import InspectedSource, Inspection, ShownRow

_BAR = 40


def inspect_data(
    name: RecipeName,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option("--rows", "-n", metavar="N", min=0, help="Rows to show.")] = 3,
    sample: Annotated[int, typer.Option("--sample", min=1, help="Rows to make for the numbers.")] = 64,
    as_json: AsJson = False,
) -> None:
    """Show what was recognised of a recipe's data, its first rows with what is trained, lengths and shares."""
    recipe = load_recipe(name, overrides or []).recipe  # Before torch: its mistakes are told at once.
    from shardyard.engine.inference import data_inspection
    from shardyard.launch.run.initial import for_planning

    found = data_inspection.inspect_data(for_planning(recipe, runs_folder()), max(rows, sample), rows)
    if as_json:
        output.print_json(data_inspection.as_json(found))
        return
    for source in found.sources:
        _print_source(source)
    for row in found.rows:
        _print_row(row)
    _print_numbers(found)


def _print_source(source: InspectedSource) -> None:
    columns = ", ".join(role if role == column else f"{role}: {column}" for role, column in source.columns.items())
    others = f"; not read: {', '.join(source.others)}" if source.others else ""
    output.line(f"{source.name}: {source.recognised} ({columns}{others})")
    output.line(
        f"  {source.share:.1%} of the mixture; {source.rows} rows, {source.documents} documents, {source.tokens} tokens"
    )
    if source.pass_documents is not None:
        tokens = "" if source.pass_tokens is None else f", about {format_count(source.pass_tokens)} tokens"
        output.line(f"  one pass: {source.pass_documents} documents{tokens}")
    if source.run_tokens is not None:
        epochs = "" if source.run_epochs is None else f", about {source.run_epochs:.3g} passes"
        output.line(f"  the run: {format_count(source.run_tokens)} tokens{epochs}")
    if number := source.left_out["unusable"] + source.left_out["without_target"]:
        output.line(f"  rows left out: {number} ({'; '.join(source.left_out['named'])})")
    for reason, count in source.left_out["filtered"].items():
        output.line(f"  removed by filters: {count} ({reason})")


def _print_row(row: ShownRow) -> None:
    """A row: trained tokens are green in a terminal and in ⟦…⟧ elsewhere; a document begins after a bar."""
    output.line()
    output.line(" ".join(filter(None, (f"── {row.source}, {row.tokens} tokens", row.beside and f"({row.beside})"))))
    document = 0
    terminal = output.is_terminal()
    parts: list[tuple[str, str]] = []
    for span in row.spans:
        if span.document != document:
            parts.append((" ▌", "bold yellow"))
            document = span.document
        text = span.text if terminal or not span.trained else f"⟦{span.text}⟧"
        parts.append((text, "green" if span.trained else "dim"))
    if not terminal:
        output.line("".join(text for text, _ in parts))
        return
    from rich.console import Console
    from rich.text import Text

    Console(soft_wrap=True).print(Text.assemble(*parts))


def _print_numbers(found: Inspection) -> None:
    output.line()
    if found.filled is not None:
        trained = "" if found.trained is None else f"; {found.trained:.1%} of the tokens are targets"
        output.line(f"positions filled: {found.filled:.1%}{trained}")
        output.line(f"cut: {found.cut_documents} documents, {found.cut_tokens} tokens that lack what comes before")
    speed = found.speed
    tokens = f", {speed.tokens_per_second:,.0f} tokens/s" if speed.tokens_per_second else ""
    rows = f"{speed.rows_per_second:,.0f} rows/s"
    output.line(f"first row after {speed.first_seconds:.2f} s; then {rows}{tokens}, in one thread here")
    bar = "█" if output.has_utf8() else "#"
    most = max(found.lengths.values(), default=1)
    for bound, number in found.lengths.items():
        output.line(f"{'≤ ' + str(bound):>9} tokens {number:>6} {bar * max(1, round(_BAR * number / most))}")
