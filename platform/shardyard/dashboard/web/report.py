"""A report of one or several runs as a single HTML file that needs no server or network."""

from __future__ import annotations

import html
import json
import sqlite3
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from shardyard import __version__
from shardyard.dashboard.charts.series import Reader, chart
from shardyard.dashboard.web import details
from shardyard.dashboard.web.answers import finite, numbers
from shardyard.dashboard.web.static_files import plotly_file
from shardyard.errors import UsageError
from shardyard.tracking.run.folder import now_text

POINTS = 1000
MOST_CHARTS = 80
# Similar metrics are omitted; the dashboard shows them.
_FIRST = ("train/loss", "eval/validation/loss", "train/lr", "train/grad_norm", "perf/tokens_per_second")
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem; text-align: left; }
th { border-bottom: 1px solid #8888; } pre { overflow-x: auto; padding: 1rem; border: 1px solid #8884; }
.charts { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
.chart { height: 20rem; min-width: 0; }
"""
_SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)").matches, ink = dark ? "#ddd" : "#222";
for (const [metric, curves] of Object.entries(data)) {
  const place = document.createElement("div");
  place.className = "chart";
  document.getElementById("charts").append(place);
  const title = document.createElement("span");
  title.textContent = metric;
  const mode = c => c.x.length > 1 ? "lines" : "markers";
  Plotly.newPlot(place, curves.map(c => ({x: c.x, y: c.y, name: c.run, mode: mode(c)})), {
    title: {text: title.innerHTML, font: {size: 14}}, margin: {l: 55, r: 10, t: 40, b: 40}, font: {color: ink},
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", showlegend: curves.length > 1,
    legend: {orientation: "h", y: -0.2}, xaxis: {title: {text: "step"}, gridcolor: "#8884"},
    yaxis: {gridcolor: "#8884"},
  }, {responsive: true, displaylogo: false});
}
"""

# Columns of the table of results.
ResultName = Literal["run", "name", "state", "step", "total_steps", "loss", "eval_loss"]


def html_report(connection: sqlite3.Connection, reader: Reader, runs_dir: Path, keys: dict[str, int]) -> str:
    """The file as text.

    Raises:
        UsageError: plotly is not installed.
    """
    compared = details.compare(connection, keys)
    charts = _charts(connection, reader, keys)
    title = next(iter(keys)) if len(keys) == 1 else f"{len(keys)} runs"
    names: tuple[ResultName, ...] = get_args(ResultName)
    results = _table(list(names), [[one[name] for name in names] for one in compared["results"]])
    body = [f"<h1>{_text(title)}</h1>", f"<p>Shardyard {_text(__version__)}, {_text(now_text())}</p>", results]
    if len(keys) > 1:
        rows = [[one["path"], *(one["values"][run] for run in keys)] for one in compared["recipe_diff"]]
        body += ["<h2>Where the recipes differ</h2>", _table(["field", *keys], rows)]
    body += ["<h2>Curves</h2>", '<div class="charts" id="charts"></div>']
    for run_id in keys:
        body += _recipe(connection, runs_dir, run_id, keys[run_id])
    return _page(title, "\n".join(body), charts)


class Trace(TypedDict):
    """The curve of a run in a chart."""

    run: str
    x: list[float | None]
    y: list[float | None]


def _charts(connection: sqlite3.Connection, reader: Reader, keys: dict[str, int]) -> dict[str, list[Trace]]:
    names: dict[str, None] = {}
    for key in keys.values():
        for group in details.metrics_by_prefix(connection, key).values():
            names |= dict.fromkeys(group)
    ordered = [*(name for name in _FIRST if name in names), *sorted(name for name in names if name not in _FIRST)]
    charts: dict[str, list[Trace]] = {}
    for name in ordered[:MOST_CHARTS]:
        for run_id, key in keys.items():
            curve = reader.curve(connection, key, name, "step")
            if curve.x.size:
                x, y = _zigzag(curve, POINTS)
                charts.setdefault(name, []).append({"run": run_id, "x": x, "y": y})
    return charts


def _zigzag(curve: Any, points: int) -> tuple[list[float | None], list[float | None]]:
    """Lowest and highest of each bucket in turn, so that one line shows every spike."""
    thin = chart(curve, points, 0.0)
    if thin.raw:
        return numbers(thin.x), numbers(thin.y, 6)
    pairs = zip(numbers(thin.minimum, 6), numbers(thin.maximum, 6), strict=True)
    return [x for x in numbers(thin.x) for _ in (0, 1)], [y for pair in pairs for y in pair]


def _recipe(connection: sqlite3.Connection, runs_dir: Path, run_id: str, key: int) -> list[str]:
    row = connection.execute("SELECT * FROM runs WHERE key = ?", (key,)).fetchone()
    found = details.recipe(runs_dir / run_id, details.info_of(row))
    derived = _table(["what", "value", "why"], found["derived"]) if found["derived"] else ""
    heading = f"<details><summary>Recipe of {_text(run_id)}</summary>"
    return [heading, f"<pre>{_text(found['given'])}</pre>", derived, "</details>"]


def _table(head: list[str], rows: list[list[Any]]) -> str:
    cells = "".join(f"<th>{_text(name)}</th>" for name in head)
    lines = "".join(f"<tr>{''.join(f'<td>{_text(_cell(value))}</td>' for value in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{lines}</tbody></table>"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _text(value: Any) -> str:
    return html.escape(str(value))


def _page(title: str, body: str, charts: dict[str, list[Trace]]) -> str:
    try:
        plotly = plotly_file().read_text(encoding="utf-8").replace("</script", "<\\/script")
    except OSError as error:
        raise UsageError(f"plotly.min.js cannot be read: {error.strerror}. Install plotly again.") from error
    # Text of a run must not close the enclosing element.
    data = json.dumps(finite(charts), ensure_ascii=True).replace("<", "\\u003c")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; script-src 'unsafe-inline'; "
        "style-src 'unsafe-inline'; img-src data: blob:\">"
        f"<style>{_STYLE}</style></head><body>{body}"
        f'<script type="application/json" id="data">{data}</script><script>{plotly}</script><script>{_SCRIPT}</script>'
        "</body></html>"
    )
