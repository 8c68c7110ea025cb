"""The command `shardyard doctor`: runs the checks and prints the report."""

from __future__ import annotations

from typing import Annotated

import typer

from shardyard.cli.doctor.checks import all_checks
from shardyard.cli.doctor.probe import Check
from shardyard.cli.view import output
from shardyard.errors import EXIT_FAILED

_COLORS = {"ok": "green", "warn": "yellow", "missing": "red"}


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    runs_dir: Annotated[str | None, typer.Option("--runs-dir", help="Folder of runs (or SHARDYARD_RUNS).")] = None,
) -> None:
    """Check this machine; fails only if even a CPU run cannot work."""
    checks = []
    for check in all_checks(runs_dir):
        checks.append(check)
        if not as_json:
            _print(check)
    broken = [check.name for check in checks if check.status == "missing" and check.needed]
    if as_json:
        output.print_json({"ready": not broken, "broken": broken, "checks": [vars(check) for check in checks]})
    else:
        _conclude(checks, broken)
    if broken:
        raise typer.Exit(EXIT_FAILED)


def _print(check: Check) -> None:
    if not output.is_terminal():
        output.line(f"{check.status:<7}  {check.name:<12}  {check.detail}")
        if check.advice:
            output.line(f"{'':23}-> {check.advice}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2, 0, 0))
    for width in (7, 12):
        row.add_column(width=width, no_wrap=True)
    row.add_column()
    row.add_row(Text(check.status, style=_COLORS[check.status]), Text(check.name), Text(check.detail))
    if check.advice:
        row.add_row("", "", Text(f"→ {check.advice}", style="bold"))
    Console().print(row)


def _conclude(checks: list[Check], broken: list[str]) -> None:
    warnings = sum(check.status != "ok" for check in checks) - len(broken)
    noticed = f"; {warnings} thing{'s' if warnings != 1 else ''} to look at above" if warnings else ""
    output.line()
    if broken:
        output.line(f"Not ready: {', '.join(broken)}{noticed}.")
    else:
        output.line(f"Ready to train{noticed}.")
