"""`shardyard launch` and `shardyard resume`: train with live output."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.options import Overrides, Quiet, RecipeName, RunName, RunsDir, Try
from shardyard.cli.view import output
from shardyard.errors import UsageError
from shardyard.launch.run.ending import ending_lines
from shardyard.launch.run.signals import StopSignals, stoppable
from shardyard.recipe.loading.load import load_recipe
from shardyard.recipe.sources.stores import is_address
from shardyard.tracking.run import profile
from shardyard.tracking.run.folder import RunFolder, runs_folder
from shardyard.tracking.run.lease import Lease
from shardyard.units import format_bytes

if TYPE_CHECKING:
    from shardyard.launch.run.plans import PlannedRun

PROFILED_STEPS = 3

Local = Annotated[bool, typer.Option("--local", help="Run one rank in this process, without Ray, for debugging.")]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Take over the run from the process that holds it, which then stops without writing."
    ),
]
Step = Annotated[
    int | None,
    typer.Option(
        "--step",
        metavar="STEP",
        min=0,
        help="Continue from the checkpoint of this step (0: from the start); later ones are set aside.",
    ),
]
Trust = Annotated[
    bool,
    typer.Option("--trust", help="Also load checkpoints that may execute code of their author."),
]
Profiled = Annotated[
    bool,
    typer.Option(
        "--profile", help="Profile three of the first steps: a trace of each rank, where the time goes, what to change."
    ),
]
Until = Annotated[
    int | None, typer.Option("--until", min=1, metavar="STEP", help="Pause after this step, with a checkpoint.")
]
DryRun = Annotated[
    int | None,
    typer.Option(
        "--dry-run",
        min=1,
        metavar="RANKS",
        help="Train a narrow copy of the model for four steps on so many processes of this machine, export it, and "
        "compare the plan's memory with what they allocate.",
    ),
]


def launch(
    name: RecipeName,
    overrides: Overrides = None,
    runs_dir: RunsDir = None,
    local: Local = False,
    until: Until = None,
    try_steps: Try = None,
    dry_run: DryRun = None,
    profiled: Profiled = False,
    quiet: Quiet = False,
) -> int:
    """Train a recipe."""
    if dry_run is not None and (local or until is not None or try_steps is not None):
        raise UsageError("--dry-run sets ranks and steps itself; leave out --local, --until and --try.")

    def work(signals: StopSignals) -> int:
        from shardyard.launch.run.plans import plan_new

        loaded, runs = load_recipe(name, overrides or []), runs_folder(runs_dir)
        if dry_run is not None:
            from shardyard.launch.dry_run.plan import plan_dry_run

            dry = plan_dry_run(loaded, dry_run, runs)
            run, runs = dry.run, dry.runs_dir
            output.note(f"dry run of {loaded.recipe.name}: {dry.text}")
        else:
            run = plan_new(loaded, runs, local=local, try_steps=try_steps)
        with signals.held():
            folder = run.create(runs)
            if profiled:
                profile.request(folder, PROFILED_STEPS)
            signals.attach(folder)
        with Lease.take(folder) as lease:
            return _train(run, folder, signals, lease, until=until, quiet=quiet)

    return stoppable(work)


def resume(
    run: RunName,
    overrides: Overrides = None,
    runs_dir: RunsDir = None,
    local: Local = False,
    until: Until = None,
    step: Step = None,
    trust: Trust = False,
    quiet: Quiet = False,
    take_over: TakeOver = False,
) -> int:
    """Resume a run from its newest checkpoint. RUN may also be its address in the object store of checkpoint.mirror."""

    def work(signals: StopSignals) -> int:
        runs = runs_folder(runs_dir)
        folder = _opened(run, runs, step)
        with Lease.take(folder, take_over=take_over, report=output.note) as lease:
            from shardyard.launch.run.plans import plan_resumed

            folder.clear_stop()
            signals.attach(folder)
            planned = plan_resumed(folder, runs, overrides or [], local=local, step=step, until=until)
            return _train(planned, folder, signals, lease, until=until, quiet=quiet, trust=trust)

    return stoppable(work)


def _opened(run: str, runs: Path, step: int | None) -> RunFolder:
    """The folder of a run; one that lies in an object store is fetched from there."""
    if not is_address(run):
        return RunFolder.open(runs, run)
    from shardyard.engine.checkpoint.remote.fetching import fetched

    runs.mkdir(parents=True, exist_ok=True)
    return fetched(run, runs, step=step, report=output.note)


def _train(
    run: PlannedRun,
    folder: RunFolder,
    signals: StopSignals,
    lease: Lease,
    *,
    until: int | None,
    quiet: bool,
    trust: bool = False,
) -> int:
    """Train in a run folder, show it, and return the exit code.

    Raises:
        ShardyardError: the run failed, or another process took it over.
    """
    from shardyard.cli.view.live import LiveView
    from shardyard.launch.run.process import EXIT_CODES, give_over

    view = None if quiet else LiveView
    outcome = give_over(run, folder, signals, lease, view=view, until=until, trust=trust)
    for line in [folder.id] if quiet else ending_lines(folder, outcome):
        output.line(line)
    if run.measure and not quiet:
        _show_memory(run, folder)
    if not quiet and (found := profile.read(folder)) is not None:
        output.line("\n".join(profile.lines(found)))
    return EXIT_CODES[outcome]


def _show_memory(run: PlannedRun, folder: RunFolder) -> None:
    """The memory that the plan expects of a rank, beside what the ranks have allocated."""
    from shardyard.engine.memory.measured import read_allocated
    from shardyard.launch.dry_run.comparison import compared

    ranks = read_allocated(folder)
    if not ranks:
        return
    rows = [
        (one.part, format_bytes(one.planned_bytes), format_bytes(one.allocated_bytes), _ratio(one.ratio))
        for one in compared(run.plan.memory, ranks)
    ]
    output.print_table(
        ("memory a rank", "planned", "allocated", "ratio"), rows, title=f"of {len(ranks)} ranks, the most"
    )


def _ratio(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"
