"""`shardyard runs`: what is in the runs folder, and one run in detail."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from shardyard.cli import output
from shardyard.cli.options import AsJson, Quiet, RunsDir
from shardyard.cli.progress import number, whole_seconds
from shardyard.tracking.files import encode
from shardyard.tracking.runfolder import RunFolder, list_runs, runs_folder
from shardyard.tracking.summary import Summary, summarize

_COLUMNS = ("run", "state", "step", "loss", "eval loss", "age")


def runs(
    run: Annotated[str | None, typer.Argument(help="Id, beginning of an id, path, or `latest`: show this run.")] = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List runs, the newest first, or show one."""
    folder = runs_folder(runs_dir)
    chosen = [RunFolder.open(folder, run)] if run is not None else list_runs(folder)
    if quiet:
        for item in chosen:
            output.line(item.id)
    elif run is not None:
        _show(chosen[0], as_json)
    elif as_json:
        _print_json([asdict(summarize(item)) for item in chosen])
    elif not chosen:
        output.note(f"There are no runs in {folder}. Start one with `shardyard launch gpt/quickstart`.")
    else:
        output.print_table(_COLUMNS, [_row(summarize(item)) for item in chosen])


def _row(summary: Summary) -> tuple[str, ...]:
    losses = (number(summary.loss) or "-", number(summary.eval_loss) or "-")
    return (summary.id, summary.state, _steps(summary), *losses, whole_seconds(summary.age_seconds) or "-")


def _show(run: RunFolder, as_json: bool) -> None:
    info, summary = run.info(), summarize(run)
    if as_json:
        _print_json({**info, **asdict(summary)})
        return
    provenance = info.get("provenance") or {}
    packages = " ".join(f"{name} {version}" for name, version in (provenance.get("packages") or {}).items())
    git = provenance.get("git") or {}
    commit = f"{git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else None
    rows: dict[str, Any] = {
        "run": run.id,
        "state": summary.state,
        "step": _steps(summary),
        "loss": number(summary.loss) or None,
        "eval loss": number(summary.eval_loss) or None,
        "ranks": summary.world_size,
        "attempts": summary.attempts,
        "created": info.get("created"),
        "started": info.get("started"),
        "ended": info.get("ended"),
        "host": provenance.get("host"),
        "git": commit,
        "packages": packages,
        "folder": run.path,
    }
    output.print_table(("", ""), [(name, str(value)) for name, value in rows.items() if value not in (None, "")])


def _steps(summary: Summary) -> str:
    return f"{summary.step}/{summary.total_steps}" if summary.total_steps else str(summary.step)


def _print_json(value: Any) -> None:
    output.print_json(json.loads(encode(value)))
