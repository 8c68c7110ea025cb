"""`shardyard data trace`: the documents behind a step of a run, and the steps that saw a document."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.options import AsJson, RunName, RunsDir
from shardyard.cli.view import output
from shardyard.errors import UsageError
from shardyard.tracking.run.folder import RunFolder, runs_folder

if TYPE_CHECKING:
    from shardyard.engine.inference.trace import DocumentTrace, TracedDocument

_SHOWN_STEPS = 12
_SHOWN_TEXT = 80


def trace_data(
    run: RunName,
    step: Annotated[
        int | None, typer.Option("--step", metavar="STEP", min=1, help="Show the documents of this step's batch.")
    ] = None,
    documents: Annotated[
        list[str] | None,
        typer.Option(
            "--document",
            "-d",
            metavar="DOCUMENT",
            help="Show the steps that saw a document: FILE:ROW, sha256:HEX, /pattern/, a JSON line, or a part of its "
            "text. Can be repeated.",
        ),
    ] = None,
    listed: Annotated[
        Path | None, typer.Option("--documents", metavar="LIST", help="A file of such documents, one a line.")
    ] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", metavar="N", min=1, help="Rows of the step to show.")] = 64,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
) -> None:
    """Show which documents a step of a run was trained on, or which steps saw a document."""
    if (step is None) == (not documents and listed is None):
        raise UsageError("give --step N, for the documents of a step, or --document, for the steps of a document.")
    folder = RunFolder.open(runs_folder(runs_dir), run)
    if step is not None:
        _print_step(folder, step, rows, as_json)
        return
    from shardyard.data.ledger.queries import parse_query, read_list
    from shardyard.engine.inference.trace import trace_documents

    queries = [parse_query(text) for text in documents or []] + (read_list(listed) if listed is not None else [])
    found = trace_documents(folder, queries)
    if as_json:
        output.print_json(found)
    else:
        _print_trace(found)


def _print_step(folder: RunFolder, step: int, rows: int, as_json: bool) -> None:
    from shardyard.engine.inference.step_documents import documents_of_step

    found = documents_of_step(folder, step, rows)
    if as_json:
        output.print_json(found)
        return
    if found["problem"]:
        output.note(f"Note: {found['problem']}")
    columns = ("row", "source", "file", "file row", "epoch", "tokens", "sha256", "text")
    lines = [
        (
            str(part["row"]),
            part["source"],
            Path(part["file"]).name,
            str(part["file_row"]),
            str(part["epoch"]),
            "-" if part["tokens"] is None else str(part["tokens"]),
            part["sha256"][:16],
            " ".join(part["text"].split())[:_SHOWN_TEXT],
        )
        for part in found["documents"]
    ]
    output.print_table(columns, lines)


def _print_trace(found: DocumentTrace) -> None:
    if found["problem"]:
        output.note(f"Note: {found['problem']}")
    for query in found["unmatched"]:
        output.note(f"Note: no document of the run's sources is {query[:_SHOWN_TEXT]}")
    for document in found["documents"]:
        output.line(f"{document['file']}, row {document['row']}: {document['text'][:_SHOWN_TEXT]}")
        output.line(f"  sha256:{document['sha256']}")
        output.line(f"  {seen_in_words(document, found['trained'])}")


def seen_in_words(document: TracedDocument, trained: int) -> str:
    """`seen in 3 steps and 2 epochs: 4, 17, 60`."""
    if document["kept_out"]:
        return "kept out of training"
    steps = list(dict.fromkeys(one["step"] for one in document["seen"]))
    if not steps:
        return f"not seen in steps 1 to {trained}"
    epochs = len({one["epoch"] for one in document["seen"]})
    shown = ", ".join(map(str, steps[:_SHOWN_STEPS])) + (", …" if len(steps) > _SHOWN_STEPS else "")
    plural = "step" if len(steps) == 1 else "steps"
    return f"seen in {len(steps)} {plural}{f' of {epochs} epochs' if epochs > 1 else ''}: {shown}"
