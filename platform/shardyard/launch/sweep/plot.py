"""The figures of a sweep: the objective against each parameter and steps, and its scaling law. SVG by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shardyard.launch.sweep.folder import Prediction, SweepFolder, TrialState
from shardyard.launch.sweep.scaling_laws import FLOPS_PER_WEIGHT_AND_TOKEN, Fit, Point, frontier
from shardyard.recipe.sweep.trials import flat, varying
from shardyard.tracking.run.folder import read_metrics
from shardyard.units import format_count

COLUMNS = 3
PANEL_INCHES = (4.2, 3.2)
_COLOURS = {"finished": "tab:blue", "stopped early": "tab:orange", "failed": "tab:red"}


def plot_sweep(folder: SweepFolder, path: Path) -> None:
    """Plot the objective against steps and parameters, with one line or point per trial. The suffix is the format."""
    trials = [trial for trial in folder.trials() if trial.run is not None]
    metric = folder.sweep().objective.metric
    names = varying([trial.parameters for trial in trials])
    with Panels(1 + len(names), path) as panels:
        _curves(panels[0], folder, trials, metric)
        for panel, name in zip(panels[1:], names, strict=True):
            _over(panel, trials, name, metric)


def plot_law(fit: Fit, path: Path, test: Prediction | None = None) -> None:
    """Plot loss against FLOPs per model size, the compute-optimal frontier, and predicted against measured loss."""
    with Panels(2, path) as (left, right):
        _iso_sizes(left, fit)
        _against(right, fit, test)


class Panels:
    """Panels in rows of three; written at the end of the block. Needs no display; equal data give an equal file."""

    def __init__(self, count: int, path: Path) -> None:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self._path, self._matplotlib = path, matplotlib
        columns = min(count, COLUMNS)
        rows = -(-count // columns)
        self._figure = Figure(figsize=(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows), layout="constrained")
        FigureCanvasAgg(self._figure)
        self._panels = self._figure.subplots(rows, columns, squeeze=False).flatten().tolist()
        for panel in self._panels[count:]:
            panel.set_visible(False)
        self._count = count

    def __enter__(self) -> list[Any]:
        return list(self._panels[: self._count])

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        metadata = {"Date": None} if self._path.suffix == ".svg" else None
        with self._matplotlib.rc_context({"svg.hashsalt": "shardyard"}):
            self._figure.savefig(self._path, metadata=metadata)


def _curves(panel: Any, folder: SweepFolder, trials: Sequence[TrialState], metric: str) -> None:
    for trial in trials:
        run = folder.run_of(trial.number)
        lines = [line for line in read_metrics(run.metrics) if metric in line] if run is not None else []
        colour = _COLOURS.get(trial.state, "tab:grey")
        panel.plot(
            [line["step"] for line in lines], [line[metric] for line in lines], color=colour, linewidth=1, alpha=0.8
        )
    panel.set_xlabel("step")
    panel.set_ylabel(metric)
    for state in sorted({trial.state for trial in trials}):
        panel.plot([], [], color=_COLOURS.get(state, "tab:grey"), label=state)
    if trials:
        panel.legend(fontsize="small")


def _over(panel: Any, trials: Sequence[TrialState], name: str, metric: str) -> None:
    found = [trial for trial in trials if trial.value is not None and name in flat(trial.parameters)]
    values = [flat(trial.parameters)[name] for trial in found]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        values = [str(value) for value in values]
    elif numbers and min(numbers) > 0 and max(numbers) / min(numbers) >= 8:
        panel.set_xscale("log")
    panel.scatter(values, [trial.value for trial in found], c=[_COLOURS.get(t.state, "tab:grey") for t in found], s=18)
    panel.set_xlabel(name)
    panel.set_ylabel(metric)


def _iso_sizes(panel: Any, fit: Fit) -> None:
    law = fit.law
    sizes = sorted({point.parameters for point in fit.points})
    tokens = sorted({point.tokens for point in fit.points})
    least, most = tokens[0] / 2, tokens[-1] * 4
    for index, size in enumerate(sizes):
        colour = f"C{index % 10}"
        grid = [least * (most / least) ** (i / 40) for i in range(41)]
        panel.plot([_flops(size, d) for d in grid], [law.loss(size, d) for d in grid], color=colour, linewidth=1)
        own = [point for point in fit.points if point.parameters == size]
        label = f"N = {format_count(size)}"
        panel.scatter(
            [_flops(p.parameters, p.tokens) for p in own], [p.loss for p in own], s=16, color=colour, label=label
        )
    flops = [_flops(point.parameters, point.tokens) for point in fit.points]
    best = frontier(law, min(flops), max(flops) * 4)
    panel.plot([c for c, _ in best], [p.loss for _, p in best], "k--", linewidth=1.5, label="compute-optimal")
    panel.set_xscale("log")
    panel.set_xlabel("training FLOPs (6·N·D)")
    panel.set_ylabel("held-out loss")
    panel.legend(fontsize="x-small")


def _against(panel: Any, fit: Fit, test: Prediction | None) -> None:
    measured = [point.loss for point in fit.points]
    predicted = [_loss(fit, point) for point in fit.points]
    panel.scatter(measured, predicted, s=16, label="fitted")
    ends = [*measured, *predicted]
    if test is not None and (value := test.get("measured")) is not None:
        label = f"larger model: {test['error']:+.2%}"
        panel.scatter([value], [test["loss"]], s=40, marker="*", color="tab:red", label=label)
        ends += [value, test["loss"]]
    panel.plot([min(ends), max(ends)], [min(ends), max(ends)], color="tab:grey", linewidth=1)
    panel.set_xlabel("measured loss")
    panel.set_ylabel("predicted loss")
    panel.legend(fontsize="small")


def _flops(parameters: float, tokens: float) -> float:
    return FLOPS_PER_WEIGHT_AND_TOKEN * parameters * tokens


def _loss(fit: Fit, point: Point) -> float:
    return fit.law.loss(point.parameters, point.tokens)
