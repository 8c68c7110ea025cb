"""Output: rich in a terminal, plain lines in a pipe, JSON on request. Colour obeys NO_COLOR.

Results go to stdout, messages to stderr.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from shardyard.redaction import scrub


def is_terminal() -> bool:
    """Whether stdout is a terminal."""
    return sys.stdout.isatty()


def has_utf8() -> bool:
    """Whether stdout can encode characters beyond ASCII."""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def width() -> int:
    """Columns of the terminal."""
    return shutil.get_terminal_size().columns


def line(text: str = "") -> None:
    """Print one plain line of results."""
    sys.stdout.write(f"{text}\n")


def note(text: str) -> None:
    """Print one plain line on stderr, separate from the results."""
    sys.stderr.write(f"{text}\n")


def print_json(value: Any) -> None:
    """Print one JSON document."""
    line(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str = "") -> None:
    """Print a table that fits the terminal; in a pipe one line per row, with tabs between cells and without header."""
    if not is_terminal():
        for row in rows:
            line("\t".join(_one_line(cell) for cell in row))
        return
    from rich.console import Console
    from rich.text import Text

    from shardyard.cli.view.table import layout

    console = Console(soft_wrap=True)  # the terminal wraps a word longer than a line; it is never truncated
    if title:
        console.print(Text(title, style="italic"))
    for text, is_head in layout(columns, list(rows), width()):
        console.print(Text(text, style="bold" if is_head else ""))


def print_yaml(text: str) -> None:
    """Print YAML, with colours in a terminal, unchanged in a pipe."""
    if not is_terminal():
        sys.stdout.write(text)
        return
    from rich.console import Console
    from rich.syntax import Syntax

    Console().print(Syntax(text, "yaml", background_color="default"))


def print_error(message: str) -> None:
    """Print an error paragraph on stderr; `Error:` is red if colour is allowed."""
    message = scrub(message)
    if not sys.stderr.isatty():
        note(f"Error: {message}")
        return
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True, soft_wrap=True).print(Text.assemble(("Error:", "bold red"), f" {message}"))


def _one_line(cell: str) -> str:
    return " ".join(cell.split())
