"""`shardyard runs`: list the runs folder, or show one run."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from shardyard.cli.options import AsJson, Quiet, RunsDir, listed_folder
from shardyard.cli.view import complete, output, troubles
from shardyard.cli.view.plot import bars, plot
from shardyard.launch.describe import number
from shardyard.launch.run.progress import rounded_seconds
from shardyard.tracking.files import encode
from shardyard.tracking.run import profile
from shardyard.tracking.run.events import line_of, read_events
from shardyard.tracking.run.folder import RunFolder, list_runs, runs_dir_option
from shardyard.tracking.run.predicted import compared, measured
from shardyard.tracking.run.summary import Summary, curve, summarize
from shardyard.tracking.watch import report

_COLUMNS = ("run", "state", "step", "loss", "eval loss", "age")
# A curve requires reading the run's metrics, so only a screenful is drawn.
_CURVES = 50
_CURVE_COLUMNS = 20
_WIDTH_FOR_CURVES = 80
_CURVE_BYTES = 4 * 1024**2


def runs(
    run: Annotated[
        str | None,
        typer.Argument(
            autocompletion=complete.run_ids, help="Id, beginning of an id, path, or `latest`: show this run."
        ),
    ] = None,
    runs_dir: RunsDir = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """List runs, newest first, or show one."""
    folder = listed_folder(runs_dir)
    chosen = [RunFolder.open(folder, run)] if run is not None else list_runs(folder)
    if quiet:
        for item in chosen:
            output.line(item.id)
    elif run is not None:
        _show(chosen[0], as_json)
    elif as_json:
        _print_json([asdict(summarize(item)) for item in chosen])
    elif not chosen:
        what = f"There are no runs in {folder}" if folder.is_dir() else f"There is no runs folder {folder} yet"
        output.note(f"{what}. Start one with `shardyard launch gpt/quickstart{runs_dir_option(folder)}`.")
    else:
        _list(chosen)


def _list(chosen: list[RunFolder]) -> None:
    rows = [_row(summarize(item)) for item in chosen]
    if not output.is_terminal():
        output.print_table(_COLUMNS, rows)
        return
    if output.width() < _WIDTH_FOR_CURVES:
        output.print_table(_COLUMNS, rows)
        return
    curves = [curve_in_text(item) if place < _CURVES else "" for place, item in enumerate(chosen)]
    output.print_table((*_COLUMNS, "curve"), [(*row, text) for row, text in zip(rows, curves, strict=True)])


def curve_in_text(run: RunFolder, columns: int = _CURVE_COLUMNS) -> str:
    """The loss of a run as one line of bars; "" if it has none or cannot be read."""
    try:
        losses: list[float | None] = [value for _, value in curve(run, most_bytes=_CURVE_BYTES)]
    except OSError:
        return ""
    return bars(losses, columns, ascii_only=not output.has_utf8())


def _row(summary: Summary) -> tuple[str, ...]:
    losses = (number(summary.loss) or "-", number(summary.eval_loss) or "-")
    return (summary.id, summary.state, _steps(summary), *losses, rounded_seconds(summary.age_seconds) or "-")


def _show(run: RunFolder, as_json: bool) -> None:
    info, summary = run.info(), summarize(run)
    if as_json:
        found = profile.read(run)
        profiled = {} if found is None else {"profile": asdict(found)}
        hang = report.newest(run.path)
        hung = {} if hang is None else {"hang": {"path": str(hang[0]), "text": hang[1]}}
        wrong = [line_of(event) for event in troubles.troubles(read_events(run.events))]
        measured_ = {"measured": asdict(measured(run)), "troubles": wrong}
        _print_json({**info.raw, **asdict(summary), **measured_, **profiled, **hung})
        return
    provenance = info.provenance
    packages = " ".join(f"{name} {version}" for name, version in (provenance.get("packages") or {}).items())
    git = provenance.get("git") or {}
    commit = f"{git['commit'][:12]}{' with changes' if git.get('dirty') else ''}" if git.get("commit") else None
    rows: dict[str, object] = {
        "run": run.id,
        "state": summary.state,
        "step": _steps(summary),
        "loss": number(summary.loss) or None,
        "eval loss": number(summary.eval_loss) or None,
        **dict(compared(run)),
        "ranks": summary.world_size,
        "attempts": summary.attempts,
        "created": info.created,
        "started": info.started,
        "ended": info.ended,
        "host": provenance.get("host"),
        "git": commit,
        "packages": packages,
        "folder": run.path,
    }
    output.print_table(("", ""), [(name, str(value)) for name, value in rows.items() if value not in (None, "")])
    if told := troubles.lines(read_events(run.events)):
        output.line("\n".join(["", *told]))
    if (found := profile.read(run)) is not None:
        output.line("\n".join(["", *profile.lines(found)]))
    if (hang := report.newest(run.path)) is not None:
        path, text = hang
        output.line("\n".join(["", f"newest hang ({path}):", *(f"  {line}".rstrip() for line in text.splitlines())]))
    if output.is_terminal() and (points := curve(run)):
        lines = plot(points, min(100, output.width()), 12, ascii_only=not output.has_utf8())
        output.line("\n".join(["", "train/loss", *lines]))


def _steps(summary: Summary) -> str:
    return f"{summary.step}/{summary.total_steps}" if summary.total_steps else str(summary.step)


def _print_json(value: Any) -> None:
    output.print_json(json.loads(encode(value)))
