"""The public Python API: `from shardyard import load_recipe, plan, launch, resume, submit, Run`. See docs/api.md."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from shardyard.engine.checkpoint.files import committed_checkpoints, step_of
from shardyard.errors import ShardyardError
from shardyard.launch.jobs.submit import check_names, make_request
from shardyard.launch.run.plans import PlannedRun, plan_new, plan_of, plan_resumed, without_weights
from shardyard.launch.run.stop import Stop
from shardyard.launch.schedulers.registry import DEFAULT, create
from shardyard.planning.plan import RunPlan
from shardyard.recipe.loading import load
from shardyard.recipe.loading.load import LoadedRecipe
from shardyard.recipe.sweep.trials import as_overrides
from shardyard.tracking.run.events import Event, read_events
from shardyard.tracking.run.folder import RunFolder, read_metrics, runs_folder
from shardyard.tracking.run.lease import Lease
from shardyard.tracking.run.summary import summarize

# Overrides: values by dotted path, or strings as for `-s`.
Overrides = Mapping[str, Any] | Sequence[str]
# A recipe's path, the name of a shipped one, or the result of `load_recipe`.
AnyRecipe = str | os.PathLike[str] | LoadedRecipe
AnyFolder = str | os.PathLike[str]
_Record = TypeVar("_Record")
MetricsCallback = Callable[[dict[str, float]], None]
EventCallback = Callable[[Event], None]


def load_recipe(recipe: AnyRecipe, overrides: Overrides = ()) -> LoadedRecipe:
    """Read, merge, override and check a recipe; `.recipe` has its fields.

    Raises:
        RecipeError: with every problem found.
    """
    texts = as_overrides(overrides) if isinstance(overrides, Mapping) else list(overrides)
    if isinstance(recipe, LoadedRecipe):
        if not texts:
            return recipe
        return load.load_recipe(str(recipe.path), [*recipe.overrides, *texts])
    return load.load_recipe(os.fspath(recipe), texts)


def plan(
    recipe: AnyRecipe, overrides: Overrides = (), *, local: bool = False, runs_dir: AnyFolder | None = None
) -> RunPlan:
    """The plan of a recipe on this machine: steps, batches, memory in bytes, FLOPs, and whether it `fits`.

    Raises:
        ShardyardError: the recipe is invalid, or its model cannot be built.
    """
    return plan_of(without_weights(load_recipe(recipe, overrides), runs_folder(runs_dir)), local=local)


def launch(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    runs_dir: AnyFolder | None = None,
    local: bool = False,
    until: int | None = None,
    try_steps: int | None = None,
    on_metrics: MetricsCallback | None = None,
    on_event: EventCallback | None = None,
    stop: Stop | None = None,
) -> Run:
    """Train a recipe to its end in a new run folder; returns the run.

    Args:
        runs_dir: parent of the run folder; SHARDYARD_RUNS or ./runs by default.
        local: one rank in this process, without Ray.
        until: pause after this step, with a checkpoint.
        try_steps: shorten the run to this many steps, and scale everything that depends on its length. on_metrics,
        on_event: called with each line of metrics.jsonl and each event, on another thread. An exception in them stops
            the run and is raised once it has ended.
        stop: lets another thread stop the run with a checkpoint.

    Raises:
        ShardyardError: the run cannot start, or training failed.
        KeyboardInterrupt: Ctrl-C ended a local run, or came twice. The first one ends Ray's workers with a checkpoint.
    """
    runs = runs_folder(runs_dir)
    planned = plan_new(load_recipe(recipe, overrides), runs, local=local, try_steps=try_steps)
    folder = planned.create(runs)
    with Lease.take(folder) as lease:
        _train(planned, folder, lease, _Callbacks(on_metrics, on_event, stop or Stop()), until=until)
    return Run(folder.path)


def resume(
    run: Run | AnyFolder,
    overrides: Overrides = (),
    *,
    runs_dir: AnyFolder | None = None,
    local: bool = False,
    until: int | None = None,
    step: int | None = None,
    trust: bool = False,
    take_over: bool = False,
    on_metrics: MetricsCallback | None = None,
    on_event: EventCallback | None = None,
    stop: Stop | None = None,
) -> Run:
    """Resume a run from its newest checkpoint and train it to its end; returns the run. Other arguments are as in
    `launch`.

    Args:
        run: a `Run`, or an id, its unique beginning, a path or `latest`.
        step: continue from the checkpoint of this step (0: from the start); later ones are set aside.
        trust: also load checkpoints that may execute code of their author.
        take_over: take over the run from the process that holds it.

    Raises:
        ShardyardError: the run does not exist, another process trains it, or training failed.
    """
    runs = runs_folder(runs_dir)
    folder = RunFolder(run.path) if isinstance(run, Run) else RunFolder.open(runs, run)
    texts = as_overrides(overrides) if isinstance(overrides, Mapping) else list(overrides)
    with Lease.take(folder, take_over=take_over) as lease:
        folder.clear_stop()
        planned = plan_resumed(folder, runs, texts, local=local, step=step, until=until)
        _train(planned, folder, lease, _Callbacks(on_metrics, on_event, stop or Stop()), until=until, trust=trust)
    return Run(folder.path)


@dataclass(frozen=True)
class SubmittedJob:
    """A submitted job.

    id: its name for `shardyard ps`, `logs` and `stop`. run_folder: of its run once it has begun, as the job's hosts see
    it; None if the scheduler does not report it.
    """

    id: str
    scheduler: str
    run_folder: Path | None


def submit(
    recipe: AnyRecipe,
    overrides: Overrides = (),
    *,
    on: str = DEFAULT,
    address: str | None = None,
    name: str | None = None,
    runs_dir: AnyFolder | None = None,
    working_dir: AnyFolder | None = None,
    try_steps: int | None = None,
    log: Callable[[str], None] = lambda text: None,
) -> SubmittedJob:
    """Submit a recipe as a job; returns as soon as the scheduler has accepted it.

    Args:
        on: the scheduler: ray, slurm or kuberay.
        address: of the scheduler, such as http://HEAD:8265; by default from the environment, or on this machine.
        name: of the job. Default: the recipe's name.
        runs_dir: parent of the run folder, as the host of the job sees it.
        working_dir: folder that is uploaded with the job.
        log: receives progress messages, for example about an upload.

    Raises:
        ShardyardError: the recipe is invalid, or the scheduler rejects the job.
    """
    folder = None if working_dir is None else Path(working_dir)
    check_names(name, folder)
    scheduler = create(on, address)
    loaded = load_recipe(recipe, overrides)
    given = str(loaded.path) if isinstance(recipe, LoadedRecipe) else os.fspath(recipe)
    request = make_request(
        given,
        loaded,
        scheduler,
        job_name=name,
        runs_dir=None if runs_dir is None else Path(runs_dir),
        working_dir=folder,
        try_steps=try_steps,
    )
    handle = scheduler.submit(request, log)
    if handle is None:
        raise ShardyardError(f"{on} has accepted the job but returned no id; `shardyard ps` lists it.")
    return SubmittedJob(handle.id, handle.scheduler, handle.run_folder)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: the step after which it was written, and its folder."""

    step: int
    path: Path


class Run:
    """A run on disk. All properties are read from disk each time.

    id: name of its folder. path: of the folder.
    """

    def __init__(self, name: AnyFolder = "latest", runs_dir: AnyFolder | None = None) -> None:
        """The run with this path, id or unique beginning of an id; `latest` is the one created last.

        Raises:
            RunFolderError: no run, or more than one, matches.
        """
        self._folder = RunFolder.open(runs_folder(runs_dir), name)
        self.id, self.path = self._folder.id, self._folder.path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def state(self) -> str:
        """`pending`, `running`, `finished`, `failed`, `interrupted`, `preempted`, or `lost`: its process is gone."""
        return summarize(self._folder).state

    @property
    def step(self) -> int:
        """The last step that was trained."""
        return self._folder.info().step

    def metrics(self) -> list[dict[str, float]]:
        """One dictionary per step, ascending: `step`, `time` in seconds since 1970, and the metrics."""
        return read_metrics(self._folder.metrics) if self._folder.metrics.exists() else []

    def columns(self, *names: str) -> dict[str, list[float | None]]:
        """Metrics by name, one value per step, None if missing; suitable for `pandas.DataFrame`. All metrics by
        default."""
        lines = self.metrics()
        wanted = names or tuple(dict.fromkeys(name for line in lines for name in line))
        return {name: [line.get(name) for line in lines] for name in wanted}

    def events(self) -> list[Event]:
        """The events in order: attempts, checkpoints, failures, notices; see `shardyard.tracking.run.events`."""
        return read_events(self._folder.events)

    def checkpoints(self) -> list[Checkpoint]:
        """Committed checkpoints, oldest first."""
        return [Checkpoint(step_of(path), path) for path in committed_checkpoints(self._folder.checkpoints)]

    def sample(
        self,
        prompts: str | Sequence[str],
        *,
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        seed: int = 0,
        step: int | None = None,
        trust: bool = False,
    ) -> list[str]:
        """The continuation of each prompt by the trained model.

        Args:
            temperature: 0 always takes the most likely token.
            step: use the checkpoint of this step instead of the final model.
            trust: also load files of the run that may execute code of their author.

        Raises:
            ShardyardError: the run has no model, or the model cannot continue text.
        """
        # Imported late, because it imports torch.
        from shardyard.engine.inference.load import load_trained

        texts = [prompts] if isinstance(prompts, str) else list(prompts)
        trained = load_trained(self._folder, step, trust=trust)
        return trained.sample(texts, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)

    def stop(self) -> None:
        """Request a stop with a checkpoint; returns at once.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        self._folder.request_stop("interrupt")

    def resume(self, overrides: Overrides = (), **options: Any) -> Run:
        """Resume the run: see `resume`."""
        return resume(self, overrides, **options)


class _Callbacks:
    """Passes records and events to callbacks; the first exception of one stops the run."""

    def __init__(self, on_metrics: MetricsCallback | None, on_event: EventCallback | None, stop: Stop) -> None:
        self.stop = stop
        self.error: Exception | None = None
        self._on_metrics, self._on_event = on_metrics, on_event

    def on_metrics(self, records: list[dict[str, float]]) -> None:
        self._call(self._on_metrics, records)

    def on_events(self, events: list[Event]) -> None:
        self._call(self._on_event, events)

    def _call(self, callback: Callable[[_Record], None] | None, records: list[_Record]) -> None:
        if callback is None or self.error is not None:
            return
        try:
            for one in records:
                callback(one)
        except Exception as error:  # noqa: BLE001  raised again once the run has ended
            self.error = error
            self.stop.request()


def _train(
    planned: PlannedRun,
    folder: RunFolder,
    lease: Lease,
    callbacks: _Callbacks,
    *,
    until: int | None,
    trust: bool = False,
) -> None:
    try:
        # Imported late, because it imports Ray.
        from shardyard.launch.run.carry_out import carry_out

        # DeepSpeed keeps the process group of the first local run, so later runs of this process use it too.
        carry_out(
            planned, folder, lease, stop=callbacks.stop, observer=callbacks, until=until, trust=trust, keep_group=True
        )
    except BaseException:
        if folder.state == "pending":
            folder.update(state="failed")
        raise
    if callbacks.error is not None:
        raise callbacks.error
