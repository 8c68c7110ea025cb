"""`shardyard tokenizer`: list, show and train tokenizers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from shardyard.cli.options import AsJson, Quiet
from shardyard.cli.view import complete, output
from shardyard.data.tokenizers.folder import REPORT, Figures, Report, read_report, trained_folder, verify_folder
from shardyard.errors import DataError, UsageError
from shardyard.recipe.catalog.shipped import find_tokenizer_spec, is_file, tokenizer_specs
from shardyard.suggest import suggestion
from shardyard.units import format_bytes

if TYPE_CHECKING:
    from rich.progress import TaskID

    from shardyard.data.tokenizers.corpus import Progress
    from shardyard.data.tokenizers.spec import TokenizerSpec

tokenizer = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="List, show and train tokenizers.",
)

SpecName = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", autocompletion=complete.spec_names, help="Spec file (.yaml) or name of a shipped spec."
    ),
]
_PHASES = {
    "reading": "reading documents",
    "training": "training",
    "estimating": "estimating pieces",
    "measuring": "measuring",
}


@tokenizer.command("list")
def list_tokenizers(as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List the shipped tokenizers."""
    rows = [_row(name) for name in tokenizer_specs()]
    if as_json:
        output.print_json(rows)
    elif quiet:
        for row in rows:
            output.line(row["name"])
    else:
        cells = [(row["name"], row["kind"], _size(row["vocabulary"]), row["description"]) for row in rows]
        output.print_table(("tokenizer", "kind", "vocabulary", "description"), cells)


@tokenizer.command("show")
def show_tokenizer(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", autocompletion=complete.spec_names, help="Spec file, shipped name, or trained folder."
        ),
    ],
    text: Annotated[str | None, typer.Argument(help="Text to encode.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print a spec and its report, and encode a text."""
    path, report = _described(name)
    encoded = None if text is None else _encode(name, text)
    if as_json:
        output.print_json({"path": str(path), "report": report, "encoded": encoded})
        return
    if not path.is_dir():
        output.print_yaml(path.read_text(encoding="utf-8"))
        output.line()
    if report is not None:
        _print_report(report)
    if encoded is not None:
        output.line()
        output.print_table(("what", "value"), _encoded_rows(encoded))


@tokenizer.command("train")
def train(
    name: SpecName,
    folder: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="DIR", help="Output folder. Default: beside the spec.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace an existing folder.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Train a tokenizer from its spec and report its quality."""
    from shardyard.data.tokenizers.spec import read_spec
    from shardyard.data.tokenizers.training import train_tokenizer

    path = _find(name)
    spec = read_spec(path)
    if not spec.is_trained:
        raise UsageError(f"{name} is of kind {spec.kind}, which needs no training; recipes use it directly.")
    destination = folder or trained_folder(path)
    _refuse_existing(destination, replace=replace)
    with _progress(shown=not (as_json or quiet)) as progress:
        report = train_tokenizer(spec, destination, progress)
    if as_json:
        output.print_json({"folder": str(destination), **report})
        return
    if not quiet:
        _print_report(report)
    output.line(str(destination))


def _refuse_existing(destination: Path, *, replace: bool) -> None:
    """Refuse to replace an existing folder without `replace`, or one that is not a trained tokenizer."""
    if not destination.exists():
        return
    if not is_file(destination / REPORT):
        raise UsageError(f"{destination} exists and is not a trained tokenizer; name another folder with --output DIR.")
    if not replace:
        raise UsageError(f"{destination} exists already; --replace trains it again, --output DIR writes another.")


def _described(name: str) -> tuple[Path, Report | None]:
    """The spec file or trained folder, and the report if it exists."""
    from shardyard.data.tokenizers.spec import read_spec

    folder = Path(name).expanduser()
    if is_file(folder / REPORT):
        return folder, verify_folder(folder)
    path = _find(name)
    trained = read_spec(path).is_trained and trained_folder(path).is_dir()
    return path, verify_folder(trained_folder(path)) if trained else None


def _find(name: str) -> Path:
    path = Path(name).expanduser()
    if name.endswith((".yaml", ".yml")) and is_file(path):
        return path
    spec = find_tokenizer_spec(name)
    if spec is None:
        raise UsageError(f"{name!r} is neither a spec file (.yaml) nor a shipped spec; {_nearest(name)}")
    return spec


def _nearest(name: str) -> str:
    return suggestion(name, tokenizer_specs())


class _Row(TypedDict):
    """A spec in the list."""

    name: str
    path: str
    kind: str
    vocabulary: int | None
    description: str


class _Encoded(TypedDict):
    """A text as tokens."""

    ids: list[int]
    pieces: list[str]
    decoded: str


def _row(name: str) -> _Row:
    """The row of a spec; broken specs are listed as such, because users edit checkouts."""
    from shardyard.data.tokenizers.spec import read_spec

    path = find_tokenizer_spec(name)
    assert path is not None, name
    try:
        spec = read_spec(path)
        report = _report_of(path, spec)
    except DataError as error:
        broken = f"broken: {str(error).splitlines()[0]}"
        return {"name": name, "path": str(path), "kind": "", "vocabulary": None, "description": broken}
    size = report["vocabulary"]["size"] if report else None
    if not spec.is_trained:
        size = 256 + len(set(spec.special_tokens.values()))
    return {
        "name": name,
        "path": str(path),
        "kind": spec.kind,
        "vocabulary": size,
        "description": spec.description,
    }


def _size(size: int | None) -> str:
    return "not trained" if size is None else str(size)


def _report_of(path: Path, spec: TokenizerSpec) -> Report | None:
    folder = trained_folder(path)
    return read_report(folder) if spec.is_trained and folder.is_dir() else None


def _encode(name: str, text: str) -> _Encoded:
    from shardyard.data.tokenizers.tokenizer import load_tokenizer

    loaded = load_tokenizer(name)
    ids = loaded(text).input_ids
    return {
        "ids": ids,
        "pieces": loaded.convert_ids_to_tokens(ids),
        "decoded": loaded.decode(ids, skip_special_tokens=True),
    }


def _encoded_rows(encoded: _Encoded) -> list[tuple[str, str]]:
    return [
        ("pieces", " ".join(encoded["pieces"])),
        ("ids", " ".join(map(str, encoded["ids"]))),
        ("decoded", encoded["decoded"]),
    ]


def _print_report(report: Report) -> None:
    output.print_table(("what", "value"), list(_report_rows(report)))
    figures = report["by_label"]
    if len(figures) > 1:
        rows = [(label, *_figures(figures[label])) for label in figures]
        output.line()
        output.print_table(("language or source", "documents", "bytes/token", "tokens/word", "unknown"), rows)
    vocabulary = report["vocabulary"]
    if vocabulary["asked"] is not None and vocabulary["size"] < vocabulary["asked"]:
        output.note(
            f"The spec asks for {vocabulary['asked']} tokens; the data yields only {vocabulary['size']}. Train on more "
            "documents, lower min_frequency, or lower vocabulary."
        )


def _report_rows(report: Report) -> Iterator[tuple[str, str]]:
    vocabulary, documents, pieces = report["vocabulary"], report["documents"], report["pieces"]
    count, compression, fertility, unknown = _figures(report["overall"])
    yield "vocabulary", f"{vocabulary['size']} tokens, {vocabulary['special']} of them special"
    yield "trained on", f"{documents['training']} documents"
    yield "measured on", f"{count} {report['measured_on']}, {format_bytes(report['overall']['bytes'])}"
    yield "compression", f"{compression} bytes/token"
    yield "fertility", f"{fertility} tokens/word"
    yield "unknown", f"{unknown} of the tokens"
    yield "rare", f"{_percent(pieces['rare_share'])} of the pieces occur less than {pieces['rare_below']} times"
    yield "unused", f"{pieces['unused']} pieces never occur"
    yield "longest", " ".join(repr(piece) for piece in pieces["longest"])
    yield "fingerprint", report["fingerprint"]


def _figures(tally: Figures) -> tuple[str, str, str, str]:
    compression, fertility = _number(tally["bytes_per_token"]), _number(tally["tokens_per_word"])
    return str(tally["documents"]), compression, fertility, _percent(tally["unknown_share"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}%"


@contextmanager
def _progress(*, shown: bool) -> Iterator[Progress]:
    """A progress bar for each phase in a terminal; in a pipe a line on stderr."""
    if not shown:
        yield lambda phase, done, total: None
    elif sys.stderr.isatty():
        with _bars() as progress:
            yield progress
    else:
        yield _lines()


def _lines() -> Progress:
    seen: set[str] = set()

    def report(phase: str, done: int, total: int | None) -> None:
        if phase not in seen:
            seen.add(phase)
            output.note(f"{_PHASES[phase]} …")

    return report


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(phase: str, done: int, total: int | None) -> None:
            if phase not in tasks:
                for task in tasks.values():
                    bars.stop_task(task)
                tasks[phase] = bars.add_task(_PHASES[phase], total=total)
            bars.update(tasks[phase], completed=done, total=total)

        yield report
