"""`shardyard data tokenize`: the documents of a recipe as token ids, made once and read at every start."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.options import AsJson, Overrides, RecipeName
from shardyard.cli.view import output
from shardyard.errors import DataError
from shardyard.recipe.loading.load import load_recipe
from shardyard.units import format_bytes, format_count, format_seconds

if TYPE_CHECKING:
    from shardyard.launch.tokens.tokenize import Made, Progress

_LINE_SECONDS = 5.0


def tokenize_data(
    name: RecipeName,
    overrides: Overrides = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Where to write; by default the cache folder.")
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="With processes of this machine, without Ray.")] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Processes at a time; by default one for each core."),
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Then read every byte and compare the checksums.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tokenise the documents of a recipe once; launches read the tokens. A stopped call goes on where it was."""
    recipe = load_recipe(name, overrides or []).recipe  # Before torch: its mistakes are told at once.
    from shardyard.launch.tokens.tokenize import tokenize

    with _reporting() as report:
        made = tokenize(recipe, report, root=to, local=local, workers=workers)
    if verify:
        _verify(made)
    if as_json:
        output.print_json([_as_json(one) for one in made])
        return
    columns = ("source", "documents", "tokens", "size", "seconds", "folder")
    output.print_table(columns, [_cells(one) for one in made])
    for one in made:
        counts = one.manifest.counts
        if counts.empty or counts.unusable or counts.filtered:
            output.line(
                f"{one.source}: {counts.empty:,} empty, {counts.unusable:,} unusable, {counts.filtered:,} filtered"
            )


def _cells(made: Made) -> tuple[str, ...]:
    counts = made.manifest.counts
    seconds = f"{made.seconds:.1f}" if made.is_new else "made before"
    size = format_bytes(sum(file.stat().st_size for file in made.folder.iterdir()))
    return made.source, f"{counts.documents:,}", f"{counts.tokens:,}", size, seconds, str(made.folder)


def _as_json(made: Made) -> dict[str, object]:
    counts = made.manifest.counts
    return {
        "source": made.source,
        "folder": str(made.folder),
        "new": made.is_new,
        "seconds": made.seconds,
        "documents": counts.documents,
        "tokens": counts.tokens,
        "text_bytes": counts.text_bytes,
        "empty": counts.empty,
        "unusable": counts.unusable,
        "filtered": counts.filtered,
        "token_type": made.manifest.token_type,
    }


def _verify(made: list[Made]) -> None:
    from shardyard.data.tokenized.layout import damaged_files

    for one in made:
        if damaged := damaged_files(one.folder):
            raise DataError(
                f"{one.folder}: {', '.join(damaged)} differ from their checksums; remove the folder, and call the "
                "command again."
            )


@contextmanager
def _reporting() -> Iterator[Callable[[Progress], None]]:
    """A bar in a terminal, else a line every few seconds; on stderr."""
    started = last = time.monotonic()

    def text(progress: Progress) -> str:
        counts, seconds = progress.counts, time.monotonic() - started
        return (
            f"{progress.source}: {progress.tasks_done} of {progress.tasks} parts, {format_count(counts.tokens)} tokens "
            f"in {format_seconds(seconds)}"
        )

    if not sys.stderr.isatty():

        def note(progress: Progress) -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_SECONDS:
                last = time.monotonic()
                output.note(text(progress))

        yield note
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda progress: bar.update(
            task, description=text(progress), completed=progress.tasks_done, total=progress.tasks
        )
