"""Finding Shardyard commands in texts, and checking each with the command line's parser without running it."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from shardyard.cli import main as cli

# In backticks, or after a label, a colon or at the beginning of a line, to its end.
_QUOTED = re.compile(r"`(shardyard [^`]+)`")
_PLAIN = re.compile(r"(?:^|\s{2}|: )(shardyard [^`]*)$", re.MULTILINE)
# Valid for a name, a path and a whole number.
_VALUE = "1"


def commands_in(text: str) -> Iterator[str]:
    """Every command in a text."""
    for line in text.splitlines():
        yield from _QUOTED.findall(line)
        if "`shardyard" not in line:
            yield from _PLAIN.findall(line)


def texts_of_python(path: Path) -> Iterator[str]:
    """The strings of a module except docstrings, with 1 for interpolated values."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, documented) and _has_doc(node)}
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(map(_filled, node.values))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (docstrings | parts):
            yield node.value


def _filled(part: ast.expr) -> str:
    if isinstance(part, ast.Constant):
        return str(part.value)
    # These two are options with their values, or nothing.
    assert isinstance(part, ast.FormattedValue)
    return "" if re.match(r"(reach|runs_dir_option)\(", ast.unparse(part.value)) else _VALUE


def _has_doc(node: Any) -> bool:
    return bool(node.body) and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant)


def texts_of_script(path: Path) -> Iterator[str]:
    """The strings of a script of the page, with 1 for interpolated values."""
    source = re.sub(r"^\s*//.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    for text in re.findall(r'"((?:[^"\\\n]|\\.)*)"', source):
        yield text
    filled = re.sub(r"\$\{(?:[^{}`]|`[^`]*`|\{[^{}]*\})*\}", _VALUE, source)
    for text in re.findall(r"`([^`]*)`", filled):
        yield text


def refusal(command: str) -> str | None:
    """Why the command line would reject a command; None if it would accept it."""
    words = shlex.split(command)
    assert words[0] == "shardyard", command
    here: Any = typer.main.get_command(cli.app)
    context: Any = None
    name, rest = "shardyard", words[1:]
    try:
        while True:
            if isinstance(here, cli.LazyCommand):
                here = here.load()
            context = here.make_context(name, list(rest), parent=context)
            rest = [*context._protected_args, *context.args]
            if not hasattr(here, "resolve_command") or not rest:
                return None
            name, here, rest = here.resolve_command(context, rest)
    except typer.TyperException as error:
        return error.format_message()
    except typer.Exit:
        return None
