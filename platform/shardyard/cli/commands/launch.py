"""`shardyard launch` and `shardyard resume`: train, show it live, and end as the person asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shardyard.cli.commands.plan import plan_of
from shardyard.cli.options import Overrides, Quiet, RecipeName, RunName, RunsDir, Try
from shardyard.cli.stopping import StopSignals, stoppable
from shardyard.cli.view import output
from shardyard.errors import EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_TIMEOUT, UsageError
from shardyard.imports import import_at_once
from shardyard.planning.plan import RunPlan, fixed
from shardyard.planning.plan_text import as_dict, resolved_text, rows
from shardyard.recipe.loading.load import LoadedRecipe, load_recipe
from shardyard.recipe.shorten import as_trial
from shardyard.tracking.files import write_atomically
from shardyard.tracking.run.folder import RunFolder, runs_folder, typed
from shardyard.tracking.run.lease import Lease

if TYPE_CHECKING:
    from shardyard.engine.job import Job

Local = Annotated[bool, typer.Option("--local", help="One rank in this process, without Ray: for debugging.")]
TakeOver = Annotated[
    bool,
    typer.Option(
        "--take-over", help="Take the run from the process that holds it, which stops without writing when it notices."
    ),
]
Step = Annotated[
    int | None,
    typer.Option(
        "--step", min=0, help="Go on from the checkpoint of this step, 0: from the start; later ones are set aside."
    ),
]
Trust = Annotated[
    bool,
    typer.Option(
        "--trust", help="Read checkpoints that may execute code of their author, which are refused otherwise."
    ),
]
Until = Annotated[int | None, typer.Option("--until", min=1, help="Pause after this step, with a checkpoint.")]

_EXIT_CODES = {
    "finished": 0,
    "paused": 0,
    "interrupted": EXIT_INTERRUPTED,
    "preempted": EXIT_PREEMPTED,
    "timeout": EXIT_TIMEOUT,
}


def launch(
    name: RecipeName,
    overrides: Overrides = None,
    runs_dir: RunsDir = None,
    local: Local = False,
    until: Until = None,
    try_steps: Try = None,
    quiet: Quiet = False,
) -> int:
    """Train a recipe."""

    def work(signals: StopSignals) -> int:
        loaded, made, found = _as_launched(name, overrides or [], runs_dir, local=local, try_steps=try_steps)
        with signals.held():
            folder = _new_folder(loaded, made, runs_dir, found)
            signals.attach(folder)
        with Lease.take(folder) as lease:
            return carry_out(loaded, made, folder, signals, lease, local=local, until=until, quiet=quiet)

    return stoppable(work)


def _as_launched(
    name: str, overrides: list[str], runs_dir: Path | None, *, local: bool, try_steps: int | None
) -> tuple[LoadedRecipe, RunPlan, dict[str, Any]]:
    """The recipe, its plan here, and what run.json says of both."""
    loaded, starting = located(load_recipe(name, overrides), runs_dir)
    found: dict[str, Any] = {"starting": starting} if starting else {}
    gpus = cluster_gpus_of(loaded, local=local)
    made = plan_of(loaded, local=local, gpus=gpus)
    if try_steps is not None:
        found["trial"] = {"steps": try_steps, "of": made.steps}
        loaded = replace(loaded, recipe=as_trial(loaded.recipe, try_steps, of=made.steps))
        made = plan_of(loaded, local=local, gpus=gpus)
    refuse_what_does_not_fit(made)
    return loaded, made, found


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
    """Go on with a run from its newest whole checkpoint."""

    def work(signals: StopSignals) -> int:
        folder = RunFolder.open(runs_folder(runs_dir), run)
        with Lease.take(folder, take_over=take_over, tell=output.note) as lease:
            folder.clear_stop()
            signals.attach(folder)
            where = local or bool(folder.info().get("local", False))
            loaded, made = _as_resumed(folder, overrides or [], runs_dir, local=where, step=step)
            return carry_out(loaded, made, folder, signals, lease, local=where, until=until, quiet=quiet, trust=trust)

    return stoppable(work)


def _as_resumed(
    folder: RunFolder, overrides: list[str], runs_dir: Path | None, *, local: bool, step: int | None
) -> tuple[LoadedRecipe, RunPlan]:
    """The recipe that a run has, with overrides, and its plan here; with `step` the run is taken back to it."""
    from shardyard.launch.run.initial import check_unchanged

    check_unchanged(folder)
    loaded = load_recipe(str(folder.resolved), overrides)
    if overrides:
        loaded, _ = located(loaded, runs_dir)
    made = plan_of(loaded, local=local, gpus=cluster_gpus_of(loaded, local=local))
    if step is not None:
        _go_back(folder, step)
    if overrides:
        write_atomically(folder.resolved, resolved_text(loaded.recipe, made))
    return loaded, made


def _go_back(folder: RunFolder, step: int) -> None:
    """Make the checkpoint of `step` the newest, and note it among the events."""
    from shardyard.engine.checkpoint.files import rewind
    from shardyard.tracking.files import JsonlWriter

    moved = ", ".join(path.name for path in rewind(folder.checkpoints, step)) or "nothing"
    writer = JsonlWriter(folder.events)
    text = f"going back to step {step}, as --step says; set aside in checkpoints/: {moved}"
    writer.append({"kind": "notice", "time": time.time(), "text": text})
    writer.close()


def located(loaded: LoadedRecipe, runs_dir: Path | None) -> tuple[LoadedRecipe, dict[str, Any]]:
    """The recipe with paths of the weights it starts from, and what run.json says of them."""
    from shardyard.launch.run.initial import locate

    recipe, starting = locate(loaded.recipe, runs_folder(runs_dir))
    return replace(loaded, recipe=recipe), starting


def cluster_gpus_of(loaded: LoadedRecipe, *, local: bool) -> int | None:
    """GPUs of the cluster that is named; None where Ray is started here, or is not used."""
    from shardyard.launch.run.world import cluster_address

    if local or cluster_address(loaded.recipe.cluster) is None:
        return None
    from shardyard.launch.ray.cluster import cluster_gpus

    return cluster_gpus(loaded.recipe.cluster)


def refuse_what_does_not_fit(made: RunPlan) -> None:
    """Pass if the plan fits the device, or its memory is not known.

    Raises:
        UsageError: it does not fit.
    """
    if made.fits is False:
        verdict = list(rows(made))[-1]
        raise UsageError(
            f"the plan needs {verdict[1]} a rank and {verdict[2]}. `shardyard plan RECIPE` shows what takes it."
        )


def _new_folder(loaded: LoadedRecipe, made: RunPlan, runs_dir: Path | None, found: dict[str, Any]) -> RunFolder:
    from shardyard.tracking.run.provenance import collect

    return RunFolder.create(
        runs_folder(runs_dir),
        loaded.recipe.name,
        loaded.text,
        resolved_text(loaded.recipe, made),
        total_steps=made.steps,
        world_size=made.world.size,
        plan={key: value for key, value in as_dict(made).items() if key not in ("reasons", "deepspeed")},
        provenance=collect(),
        **found,
    )


def carry_out(
    loaded: LoadedRecipe,
    made: RunPlan,
    folder: RunFolder,
    signals: StopSignals,
    lease: Lease,
    *,
    local: bool,
    until: int | None,
    quiet: bool,
    trust: bool = False,
) -> int:
    """Train in a run folder, show it, and return the exit code.

    Raises:
        ShardyardError: the run failed, or another process took it over.
    """
    from shardyard.launch.run.output import Terminal

    folder.update(local=local, total_steps=made.steps, world_size=made.world.size)
    terminal = Terminal(folder.path / "logs" / "driver.log")
    try:
        # After the redirection, because importing DeepSpeed talks.
        from shardyard.engine.job import Job

        with _showing(folder, made, terminal.stream, quiet=quiet) as say, signals.driving(folder, say):
            job = Job(fixed(loaded.recipe, made), made, folder, until, trust)
            outcome = _drive(job, signals, lease, local=local)
    finally:
        terminal.restore()
    _farewell(folder, outcome, quiet=quiet)
    return _EXIT_CODES[outcome]


def _drive(job: Job, signals: StopSignals, lease: Lease, *, local: bool) -> str:
    """Run to the end. Ray waits on another thread than the main one, which handles signals at once.

    Raises:
        ShardyardError: the run failed, or another process took it over.
    """
    from shardyard.launch.run.driver import drive

    if local:
        import_at_once("shardyard.launch.run.local")
        return drive(job, local=True)
    results: list[str] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(drive(job, local=False))
        except BaseException as error:  # noqa: BLE001  raised again on the main thread
            errors.append(error)

    thread = threading.Thread(target=work, name="shardyard-driver", daemon=True)
    thread.start()
    while thread.is_alive():
        # Waiting in pieces lets Python run the signal handlers, which Ray takes for its own when it connects.
        thread.join(timeout=0.2)
        signals.install()
        if lease.lost.is_set():
            _leave(job.folder)
    if errors:
        raise errors[0]
    return results[0]


def _leave(folder: RunFolder) -> None:
    """The run is another's: end what trains it here, which would go on writing.

    Raises:
        TakenOverError: always.
    """
    from shardyard.launch.run.end_children import end_children

    end_children()
    folder.check_held()


@contextmanager
def _showing(folder: RunFolder, made: RunPlan, stream: Any, *, quiet: bool) -> Iterator[Callable[[str], None]]:
    """The live view, fed from the run folder on a thread of its own."""
    from shardyard.cli.view.live import LiveView, watch

    if quiet:
        yield lambda text: None
        return
    stop = threading.Event()
    with LiveView(stream, folder.id, made.steps) as view:
        new_run = not folder.metrics.exists()
        thread = threading.Thread(
            target=watch, args=(folder, view, stop), kwargs={"from_start": new_run}, name="shardyard-view", daemon=True
        )
        thread.start()
        try:
            yield view.message
        finally:
            stop.set()
            thread.join(timeout=5)


def _farewell(folder: RunFolder, outcome: str, *, quiet: bool) -> None:
    """Where everything is, and what to do next."""
    if quiet:
        output.line(folder.id)
        return
    if outcome == "finished":
        for sample in _last_samples(folder):
            output.line(f"sample       {sample}")
        output.line(f"run folder   {folder.path}")
        output.line(f"model        {folder.path / 'final'}")
        if measured := _last_evaluation(folder):
            output.line(f"held out     {measured}")
        output.line(f"try          {_next_command(folder)}")
    else:
        info = folder.info()
        saved = "with a checkpoint" if any(folder.checkpoints.glob("step-*")) else "before its first checkpoint"
        output.line(f"{outcome} at step {info['step']} of {info['total_steps']}, {saved}")
        output.line(f"run folder   {folder.path}")
        output.line(f"resume       shardyard resume {typed(folder.path)}")
    for line in _wandb_lines(folder):
        output.line(line)


def _last_evaluation(folder: RunFolder) -> str:
    """`loss 0.4132, accuracy 0.8641`; "" where nothing was measured."""
    from shardyard.cli.view.progress import metrics_in_words
    from shardyard.tracking.metrics.record import evaluation_of
    from shardyard.tracking.run.folder import read_metrics

    measured = [found for line in read_metrics(folder.metrics) if (found := evaluation_of(line))]
    return metrics_in_words(measured[-1]) if measured else ""


def _objective_of(folder: RunFolder) -> str:
    """Read without checks: what a recipe needs may be gone by now."""
    from ruamel.yaml import YAML

    fields = YAML(typ="safe", pure=True).load(folder.resolved.read_text(encoding="utf-8"))
    return str(fields["objective"])


def _next_command(folder: RunFolder) -> str:
    from shardyard.objectives.registry import objective_spec

    if objective_spec(_objective_of(folder)).generates:
        return f'shardyard sample {typed(folder.path)} "your prompt"'
    return f"shardyard eval {typed(folder.path)}"


def _last_samples(folder: RunFolder) -> list[str]:
    from shardyard.objectives.registry import objective_spec
    from shardyard.tracking.files import read_jsonl

    samples = read_jsonl(folder.samples) if folder.samples.exists() else []
    last = [sample for sample in samples if sample["step"] == samples[-1]["step"]] if samples else []
    between = " → " if objective_spec(_objective_of(folder)).answers else ""
    return [" ".join(f"{sample['prompt']}{between}{sample['text']}".split())[:160] for sample in last]


def _wandb_lines(folder: RunFolder) -> list[str]:
    offline = sorted(folder.wandb.glob("offline-run-*"))
    return [f"W&B          shardyard wandb sync {typed(folder.path)}"] if offline else []
