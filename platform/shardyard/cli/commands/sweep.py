"""`shardyard sweep`: train a recipe with many values of some fields and rank the results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from shardyard.cli.commands.sweep_run import carry_out
from shardyard.cli.options import AsJson, Overrides, Quiet, RunsDir, listed_folder
from shardyard.cli.view import complete, output
from shardyard.errors import UsageError
from shardyard.extras import missing, require
from shardyard.launch.sweep.folder import SweepFolder, TrialState, best_trial, list_sweeps, require_best
from shardyard.launch.sweep.plot import plot_law, plot_sweep
from shardyard.launch.sweep.scaling_laws import FLOPS_PER_WEIGHT_AND_TOKEN, frontier
from shardyard.recipe.loading.load import dump_recipe
from shardyard.recipe.sweep.load import load_base, load_sweep
from shardyard.recipe.sweep.schema import Sweep
from shardyard.recipe.sweep.trials import as_overrides, flat, shown, varying
from shardyard.suggest import nearest
from shardyard.tracking.run.folder import runs_dir_option, runs_folder, typed
from shardyard.units import format_count

SweepName = Annotated[
    str,
    typer.Argument(metavar="SWEEP", autocompletion=complete.sweep_ids, help="Id, unique beginning, path, or `latest`."),
]
Address = Annotated[
    str | None,
    typer.Option(
        "--address", metavar="HOST:PORT", help="Ray cluster, host:port; RAY_ADDRESS, the recipe's, or a local one."
    ),
]


class _SweepGroup(TyperGroup):
    """`shardyard sweep FILE` runs a sweep; a word that is not a subcommand is taken as a file."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in ("-h", "--help"):
            near = nearest(args[0], self.commands)
            if near is not None and not Path(args[0]).exists():
                raise UsageError(f"sweep has no command {args[0]!r}, and there is no such file; did you mean {near!r}?")
            args = ["run", *args]
        return list(super().parse_args(ctx, args))


sweep = typer.Typer(
    cls=_SweepGroup,
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Train a recipe with many values of its fields (`shardyard sweep FILE`), and inspect sweeps.",
)


@sweep.command("run")
def run_sweep(
    name: Annotated[
        str,
        typer.Argument(
            metavar="FILE",
            autocompletion=complete.sweep_names,
            help="Path or name of a sweep, such as sweeps/lr-batch.",
        ),
    ],
    overrides: Overrides = None,
    runs_dir: RunsDir = None,
    address: Address = None,
    quiet: Quiet = False,
) -> int:
    """Run a sweep: every trial is an ordinary run."""
    loaded = load_sweep(name, overrides or [])
    _require_libraries(loaded.sweep)

    return _carry_out(SweepFolder.create(runs_folder(runs_dir), loaded), address, quiet=quiet)


@sweep.command("resume")
def resume_sweep(name: SweepName, runs_dir: RunsDir = None, address: Address = None, quiet: Quiet = False) -> int:
    """Resume a sweep: ended trials are kept, others continue from their checkpoints."""
    folder = _open(name, runs_dir)
    _require_libraries(folder.sweep())
    if folder.alive:
        driver = folder.info().get("driver") or {}
        raise UsageError(
            f"{folder.id} is being run by process {driver.get('pid')} on {driver.get('host')}; "
            f"`shardyard sweep stop {typed(folder.path)}` stops it."
        )
    return _carry_out(folder, address, quiet=quiet)


@sweep.command("list")
def list_all(runs_dir: RunsDir = None, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """List sweeps, newest first."""
    found = list_sweeps(listed_folder(runs_dir))
    if quiet:
        for one in found:
            output.line(one.id)
        return
    rows: list[tuple[str, str, int, float | None]] = []
    for one in found:
        trials = one.trials()
        best = best_trial(one, trials)
        ended = sum(trial.state in ("finished", "stopped early", "failed") for trial in trials)
        rows.append((one.id, _state(one), ended, best.value if best else None))
    if as_json:
        output.print_json([dict(zip(("sweep", "state", "ended", "best"), row, strict=True)) for row in rows])
    elif not rows:
        place = runs_dir_option(runs_folder(runs_dir))
        output.note(f"There are no sweeps. Start one with `shardyard sweep sweeps/lr-batch{place}`.")
    else:
        table = [(name, state, str(ended), _number(value)) for name, state, ended, value in rows]
        output.print_table(("sweep", "state", "ended trials", "best"), table)


@sweep.command("show")
def show(
    name: SweepName,
    runs_dir: RunsDir = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Write the figure here, .svg or .png."),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Show the trials of a sweep, best first, and plot them."""
    folder = _open(name, runs_dir)
    trials = _ranked(folder)
    if quiet:
        for trial in trials:
            if trial.run is not None:
                output.line(trial.run)
        return
    if as_json:
        output.print_json({**folder.info(), "state": _state(folder), "trials": [asdict(trial) for trial in trials]})
    else:
        _print_trials(folder, trials)
    if plot is None and missing("matplotlib"):
        return
    require("sweep", "the figure of a sweep", "matplotlib")

    path = _figure(plot, folder.path / "sweep.svg")
    plot_sweep(folder, path)
    output.note(f"plot: {path}")


@sweep.command("best")
def best(
    name: SweepName,
    runs_dir: RunsDir = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the recipe to this file.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Print the recipe of the best trial, ready to launch."""
    folder = _open(name, runs_dir)
    trial = require_best(folder)
    if quiet:
        output.line(str(trial.run))
        return
    plain = {**trial.parameters, "name": f"{folder.sweep().name[:75]}-best"}
    if folder.sweep().population is not None:
        output.note(
            "A population changes values during training, so launching with the final values gives a different result."
        )
        plain |= {"evaluate.every": folder.sweep().population.every}  # type: ignore[union-attr]
    recipe = load_base(folder.base, as_overrides(plain)).recipe
    metric = folder.sweep().objective.metric
    head = (
        f"# {folder.id}, trial {trial.number}: {shown(trial.parameters)}\n# {metric} {trial.value}, run {trial.run}\n"
    )
    if out is None:
        output.print_yaml(head + dump_recipe(recipe))
        return
    if out.exists():
        raise UsageError(f"{out} exists already; name another file.")
    out.write_text(head + dump_recipe(recipe), encoding="utf-8")
    output.line(str(out))


@sweep.command("stop")
def stop(name: SweepName, runs_dir: RunsDir = None) -> None:
    """Stop a sweep; its trials write checkpoints."""
    folder = _open(name, runs_dir)
    if not folder.alive:
        raise UsageError(f"{folder.id} is not running; its state is {_state(folder)}.")
    folder.request_stop()
    output.line(f"{folder.id} stops after the current steps; `shardyard sweep resume {typed(folder.path)}` goes on.")


@sweep.command("fit")
def fit(
    name: SweepName,
    runs_dir: RunsDir = None,
    form: Annotated[str, typer.Option("--form", help="hoffmann or kaplan.")] = "hoffmann",
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write the figure here; .svg or .png.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit a scaling law to the finished trials of a sweep over sizes and tokens."""
    if form not in ("hoffmann", "kaplan"):
        raise UsageError(f"--form must be hoffmann or kaplan, got {form!r}.")
    folder = _open(name, runs_dir)
    require("sweep", "the fit of a scaling law", "scipy", "matplotlib")
    from shardyard.launch.sweep.fit import fit_sweep

    fitted = fit_sweep(folder, form=form)  # type: ignore[arg-type]
    prediction = folder.info().get("prediction")
    if as_json:
        output.print_json({**fitted.as_dict(), "prediction": prediction})
    else:
        output.line(fitted.describe())
        for line in _frontier_lines(fitted):
            output.line(line)
        if prediction is not None and (measured := prediction.get("measured")) is not None:
            loss = fitted.law.loss(prediction["parameters"], prediction["tokens"])
            error = loss / measured - 1
            output.line(
                f"test of a larger model: predicted {loss:.4f}, measured {measured:.4f}, an error of {error:+.2%}"
            )
            prediction = {**prediction, "loss": loss, "error": error}
    path = _figure(plot, folder.path / f"{form}.svg")
    plot_law(fitted, path, prediction)
    output.note(f"plot: {path}")


def _open(name: str, runs_dir: Path | None) -> SweepFolder:

    return SweepFolder.open(runs_folder(runs_dir), name)


def _require_libraries(sweep: Sweep) -> None:
    """Check that the libraries that the sweep needs are installed, before spending hours on its trials."""
    if sweep.search.name == "bayesian":
        require("sweep", "a Bayesian search", "optuna")
    if sweep.scaling_law is not None:
        require("sweep", "the fit of a scaling law", "scipy", "matplotlib")


def _carry_out(folder: SweepFolder, address: str | None, *, quiet: bool) -> int:

    state, code = carry_out(folder, address, quiet=quiet)
    if quiet:
        output.line(folder.id)
    else:
        _print_trials(folder, _ranked(folder))
        output.line(f"sweep folder  {folder.path}")
        if state == "finished":
            output.line(f"best          shardyard sweep best {typed(folder.path)} --out best.yaml")
        else:
            output.line(f"{state}; go on with `shardyard sweep resume {typed(folder.path)}`")
    return code


def _ranked(folder: SweepFolder) -> list[TrialState]:
    """Best first; trials without a result last."""
    sign = 1.0 if folder.sweep().objective.mode == "min" else -1.0

    def key(trial: TrialState) -> tuple[bool, bool, float, int]:
        value = trial.value
        return (trial.state != "finished", value is None, sign * (value if value is not None else 0.0), trial.number)

    return sorted(folder.trials(), key=key)


def _print_trials(folder: SweepFolder, trials: list[TrialState]) -> None:
    names = varying([trial.parameters for trial in trials])
    columns = ("trial", "state", "step", folder.sweep().objective.metric, *names, "run")
    rows = [
        (
            f"{trial.number:03d}",
            trial.state,
            f"{trial.step}/{trial.total_steps or '?'}",
            _number(trial.value),
            *(str(flat(trial.parameters).get(name, "")) for name in names),
            trial.run or (trial.error or "").splitlines()[0],
        )
        for trial in trials
    ]
    output.print_table(columns, rows, title=f"{folder.id} ({_state(folder)})")


def _frontier_lines(fitted: Any) -> Iterator[str]:
    """The predicted optimum for some budgets around those of the trials."""
    flops = [FLOPS_PER_WEIGHT_AND_TOKEN * point.parameters * point.tokens for point in fitted.points]
    for budget, point in frontier(fitted.law, min(flops), 16 * max(flops), count=5):
        size, tokens = format_count(point.parameters), format_count(point.tokens)
        yield f"  {format_count(budget)} FLOPs: N {size}, D {tokens}, loss {point.loss:.3f}"


def _figure(given: Path | None, default: Path) -> Path:
    path = given or default
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"{path} has to end in .svg or .png.")
    return path


def _state(folder: SweepFolder) -> str:
    state = str(folder.info()["state"])
    return "lost" if state == "running" and not folder.alive else state


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
