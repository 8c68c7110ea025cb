"""`shardyard data build`: clean data from many files, with a data card."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.options import AsJson, Quiet
from shardyard.cli.view import output
from shardyard.errors import UsageError
from shardyard.units import format_bytes

if TYPE_CHECKING:
    from shardyard.data.build.build import Report
    from shardyard.data.build.card import Card
    from shardyard.data.build.spec import BuildSpec

_SIMILARITIES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.9)


def build_data(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML file with name, sources, steps and output.")],
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Output folder, instead of the file's.")
    ] = None,
    plan: Annotated[
        bool, typer.Option("--plan", help="Write nothing; show what the steps do to a sample of each source.")
    ] = False,
    sample: Annotated[int, typer.Option("--sample", min=1, help="With --plan: documents of each source.")] = 1000,
    local: Annotated[bool, typer.Option("--local", help="Work in this process, without Ray.")] = False,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="Tasks at the same time. Default: one for each core."),
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace what is in the output folder.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Filter, map and deduplicate documents of many files into new ones, with a data card; a stopped build goes on."""
    from shardyard.data.build.spec import load_spec

    loaded = load_spec(file, folder)
    if plan:
        from shardyard.data.build.build import sample as sampled

        with (
            tempfile.TemporaryDirectory(prefix="shardyard-") as work,
            _progress(shown=not (as_json or quiet)) as report,
        ):
            card = sampled(loaded, Path(work), sample, report)
        if as_json:
            output.print_json(card)
        else:
            _print_plan(loaded.spec, card, sample)
        return
    if workers is not None and local:
        raise UsageError("--workers is for Ray, and --local works without; give one of them.")
    from shardyard.launch.data_build import build_data as made

    with _progress(shown=not (as_json or quiet)) as report:
        built = made(loaded, report, local=local, workers=workers, replace_old=replace)
    if as_json:
        output.print_json({"folder": str(built.folder), "was_there": built.was_there, **built.card})
        return
    if not quiet:
        if built.was_there:
            output.note("The same build is there already.")
        _print_card(built.card)
    output.line(str(built.folder))


def _print_plan(spec: BuildSpec, card: Card, sample: int) -> None:
    output.note(f"The first {sample} documents of each source, compared among these alone; nothing is written.")
    _print_card(card)
    for step in spec.steps:
        if step.near_duplicates is not None:
            near = step.near_duplicates
            found = {s: 1 - (1 - s**near.rows) ** near.bands for s in _SIMILARITIES}
            shown = ", ".join(f"{s:.0%}: {probability:.0%}" for s, probability in found.items())
            output.line(f"near_duplicates finds documents that share this part of their {near.ngram}-grams: {shown}")


def _print_card(card: Card) -> None:
    for source in card["sources"]:
        counts = source["counts"]
        read = f"{counts['documents']:,} documents, {format_bytes(counts['bytes'])}"
        lost = {"unusable": counts["unusable"], "empty": counts["empty"], "repaired": counts["repaired"]}
        told = "".join(f"; {count} {word}" for word, count in lost.items() if count)
        output.line(f"{source['name']}: {read}{told}; {counts['kept']:,} in the output")
    rows = []
    for number, step in enumerate(card["steps"], 1):
        counts_ = step["counts"]
        share = f"{counts_['removed'] / counts_['documents']:.1%}" if counts_["documents"] else "-"
        size, changed = format_bytes(counts_["removed_bytes"]), f"{counts_['changed']:,}"
        rows.append(
            (f"{number}. {step['name']}", f"{counts_['removed']:,}", share, size, changed, _first(counts_["reasons"]))
        )
    if rows:
        output.print_table(("step", "removed", "share", "text removed", "changed", "first reason"), rows)
    output.line(f"{card['documents']:,} documents, {format_bytes(card['bytes'])} of text")


def _first(reasons: Mapping[str, int]) -> str:
    return next((f"{reason} ({count:,})" for reason, count in reasons.items()), "-")


@contextmanager
def _progress(*, shown: bool) -> Iterator[Report]:
    """A bar for each stage in a terminal, else a line; on stderr."""
    if not shown:
        yield lambda title, done, total: None
    elif sys.stderr.isatty():
        with _bars() as report:
            yield report
    else:
        yield lambda title, done, total: None if done else output.note(f"{title} …")


@contextmanager
def _bars() -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks = {}

        def report(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = bars.add_task(title, total=total)
            bars.update(tasks[title], completed=done, total=total)

        yield report
