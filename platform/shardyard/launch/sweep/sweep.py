"""The driver of a sweep: Ray Tune starts its trials, and their results are written to its folder.

Trials are ordinary runs, so an interrupted sweep is resumed from their folders: ended trials are not trained again,
the others resume from their newest checkpoints.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, PlacementGroupFactory, RunConfig, Stopper, TuneConfig

from shardyard.errors import ShardyardError
from shardyard.launch.describe import describe
from shardyard.launch.ray.cluster import RayCluster, ray_cluster
from shardyard.launch.run.settle import bf16_of_nodes, nodes_for
from shardyard.launch.run.world import cluster_address, world_of
from shardyard.launch.sweep.fit import fit_sweep, judge, predict
from shardyard.launch.sweep.folder import SweepFolder, TrialState
from shardyard.launch.sweep.search import Bayesian, Constants, listed, scheduler_of
from shardyard.launch.sweep.trial import SweepTrial
from shardyard.planning.placement import ANYWHERE, Demand, ask
from shardyard.planning.plan import World
from shardyard.recipe.loading.load import dump_recipe, load_recipe
from shardyard.recipe.precision import choose_precision, with_precision
from shardyard.recipe.schema import Cluster
from shardyard.recipe.sweep.schema import Sweep
from shardyard.recipe.sweep.trials import Trial, planned_trials, shown, trial_count
from shardyard.tracking.files import write_atomically
from shardyard.tracking.run.events import Hang, read_events
from shardyard.tracking.run.folder import now_text, owner

Report = Callable[[str], None]
TABLE_SECONDS = 5.0
_QUIET = {
    # Results are written to run folders; Tune's copies would be redundant.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_INSUFFICENT_RESOURCE_THRESHOLD_S": "60",
    # A run that was stopped before its first evaluation has none.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # A stopped trial first writes a checkpoint.
    "TUNE_FORCE_TRIAL_CLEANUP_S": "600",
}


def drive_sweep(folder: SweepFolder, report: Report) -> str:
    """Run a sweep to its end and keep sweep.json up to date; returns `finished`, `stopped` or `budget used`.

    Raises:
        ShardyardError: no trial could be evaluated; sweep.json says `failed`.
    """
    sweep = folder.sweep()
    folder.clear_stop()
    folder.update(state="running", ended=None, **owner())
    progress = Progress(folder, sweep, report)
    try:
        cluster = load_recipe(str(folder.base)).recipe.cluster
        with ray_cluster(_room(cluster, sweep)) as ray:
            world = world_of(cluster, cluster_gpus=int(ray.gpus))
            demand = ray.requested(ask(cluster, gpu=world.gpu))
            ray.refuse_what_never_fits(demand)
            _fix_precision(folder, ray, demand, world)
            resource = _resources(demand)
            _tune(folder, sweep, progress, resource)
            if sweep.scaling_law is not None and progress.reason is None:
                _scaling_law(folder, sweep, progress, resource, report)
        state = progress.reason or "finished"
        _check_measured(folder)
    except BaseException:
        progress.close("failed")
        raise
    progress.close(state)
    return state


def _fix_precision(folder: SweepFolder, cluster: RayCluster, demand: Demand, world: World) -> None:
    """Fix one precision for all trials, wherever they run and across resumes of the sweep."""
    recipe = load_recipe(str(folder.base)).recipe
    if recipe.train.precision is None:
        bf16 = world.bf16
        if bf16.units is None:
            bf16 = bf16_of_nodes(nodes_for(cluster, demand, ANYWHERE), gpu=world.gpu)
        chosen = choose_precision(None, bf16, gpu=world.gpu)
        write_atomically(folder.base, dump_recipe(with_precision(recipe, chosen.precision)))


class Progress(Callback, Stopper):  # type: ignore[misc]
    """Receives Tune's callbacks, and ends the sweep on a stop request or when its budget is used up."""

    def __init__(self, folder: SweepFolder, sweep: Sweep, report: Report) -> None:
        self._folder, self._sweep, self._report = folder, sweep, report
        self._started, self._before = time.monotonic(), float(folder.info().get("seconds") or 0.0)
        self._written = 0.0
        self._tokens = {trial.run: trial.tokens for trial in folder.trials() if trial.run is not None}
        self._numbers: dict[str, int] = {}
        self.reason: str | None = None

    def __getstate__(self) -> dict[str, object]:
        """Empty: Tune pickles a copy, which is never read here."""
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Progress:
        return self

    @property
    def seconds(self) -> float:
        """Wall time of the sweep, over all resumes."""
        return self._before + time.monotonic() - self._started

    def __call__(self, trial_id: str, result: object) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether the sweep ends now; if so, requests a stop of the runs, because actors are busy until they end."""
        if self.reason is None:
            budget = self._sweep.budget
            late = budget.seconds is not None and self.seconds >= budget.seconds
            if self._folder.stop_requested():
                self.reason = "stopped"
            elif late or (budget.tokens is not None and sum(self._tokens.values()) >= budget.tokens):
                self.reason = "budget used"
            if self.reason is not None:
                self._report(f"{self.reason}: running trials stop with a checkpoint")
                # New trials see this request; running ones get their own.
                self._folder.request_stop()
                self._stop_runs()
        return self.reason is not None

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Mapping[str, Any], **_: Any) -> None:
        metric = self._sweep.objective.metric
        if result["run"] is not None:
            self._tokens[result["run"]] = max(result["tokens"], self._tokens.get(result["run"], 0))
        # The trial's own number: a member of a population has the configuration of the one that it copied.
        number = self._numbers[trial.trial_id] = result["number"]
        if metric not in result:
            return
        value = result[metric]
        self._report(
            f"trial {number:03d}  step {result['step']:>6}  {metric} {value:.4f}  {shown(trial.config['parameters'])}"
        )
        if time.monotonic() - self._written > TABLE_SECONDS:
            self._write()

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Stop the run of a trial that the scheduler ended, with a checkpoint."""
        number = self._numbers.get(trial.trial_id, trial.config["number"])
        run = self._folder.run_of(number)
        if self.reason is None and run is not None and not trial.last_result.get("ended"):
            self._folder.note(number, stopped=True)
            self._report(f"trial {number:03d}  stopped early")
            if run.state == "running":
                run.request_stop("interrupt")
        self._write()

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        number = self._numbers.get(trial.trial_id, trial.config["number"])
        # Without a report from the trial, its process or node was lost; a resume retries it.
        error = self._folder.record(number).get("error") or self._hang(number) or "its worker went away"
        self._report(f"trial {number:03d}  failed: {error.splitlines()[0]}")
        self._write()

    def _hang(self, number: int) -> str:
        """What the watchdog of a trial reported last of a process that it ended; "" if nothing."""
        run = self._folder.run_of(number)
        found = read_events(run.events) if run is not None else []
        return describe(found[-1]) if found and isinstance(found[-1], Hang) else ""

    def close(self, state: str) -> None:
        """Write the final state of the sweep."""
        self._folder.update(state=state, ended=now_text(), seconds=self.seconds)
        self._folder.write_table()

    def _write(self) -> None:
        self._written = time.monotonic()
        self._folder.write_table()
        self._folder.update(seconds=self.seconds)

    def _stop_runs(self) -> None:
        for record in self._folder.records():
            run = self._folder.run_of(int(record["trial"]))
            if run is not None and run.state == "running":
                run.request_stop("interrupt")


def _tune(folder: SweepFolder, sweep: Sweep, progress: Progress, resource: PlacementGroupFactory) -> None:
    before = folder.trials()
    constants: Constants = {"sweep": str(folder.path), "cwd": os.getcwd()}
    if sweep.search.name == "bayesian":
        search = Bayesian(sweep, before, constants)
        left = trial_count(sweep) - sum(trial.state in ("finished", "stopped early", "failed") for trial in before)
        _fit(folder, progress, resource, {}, TuneConfig(search_alg=search, num_samples=left), sweep, left)
        return
    trials = _left(sweep, planned_trials(sweep), before)
    _fit(folder, progress, resource, listed(trials, constants), TuneConfig(num_samples=1), sweep, len(trials))


def _left(sweep: Sweep, trials: list[Trial], before: list[TrialState]) -> list[Trial]:
    """The remaining trials. Ended trials are included if others are compared with them; they are only read."""
    known = {trial.number: trial for trial in before}
    left = []
    for trial in trials:
        state = known.get(trial.number)
        if state is not None and (state.error or (state.state == "finished" and sweep.stopping is None)):
            continue
        # Members of a population continue with the values that they copied.
        left.append(Trial(trial.number, state.parameters) if state is not None and state.run else trial)
    return left


def _fit(
    folder: SweepFolder,
    progress: Progress,
    resource: PlacementGroupFactory,
    space: Mapping[str, object],
    config: TuneConfig,
    sweep: Sweep,
    count: int,
) -> None:
    if count <= 0 or progress.stop_all():
        return
    config.scheduler = scheduler_of(sweep)
    config.reuse_actors = True
    config.trial_dirname_creator = _trial_id
    if sweep.population is None:  # a member that waits for others still counts as running
        config.max_concurrent_trials = sweep.parallel
    before = {name: os.environ.get(name) for name in _QUIET}
    os.environ.update(_QUIET)
    try:
        tune.Tuner(
            tune.with_resources(SweepTrial, resource),
            param_space=dict(space),
            tune_config=config,
            run_config=RunConfig(
                name="tune",
                storage_path=str(_tune_folder(folder)),
                callbacks=[progress],
                stop=progress,
                verbose=0,
            ),
        ).fit()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _scaling_law(
    folder: SweepFolder, sweep: Sweep, progress: Progress, resource: PlacementGroupFactory, report: Report
) -> None:
    """Fit a law, predict the loss of the larger trial, train it, and compare."""
    assert sweep.scaling_law is not None
    fitted = fit_sweep(folder, form=sweep.scaling_law.form)
    folder.update(fit=fitted.as_dict())
    report(fitted.describe())
    number = trial_count(sweep)
    if not sweep.scaling_law.test:
        return
    prediction = folder.info().get("prediction")
    if prediction is None:
        prediction = predict(folder, fitted, number)
        folder.update(prediction=prediction)
    report(f"predicted for the test: {prediction['loss']:.4f}")
    constants: Constants = {"sweep": str(folder.path), "cwd": os.getcwd()}
    test = Trial(number, sweep.scaling_law.test)
    if folder.record(number).get("error") is None:
        _fit(folder, progress, resource, listed([test], constants), TuneConfig(num_samples=1), sweep, 1)
    outcome = judge(folder, number)
    if outcome is not None:
        folder.update(prediction=outcome)
        report(f"measured for the test: {outcome['measured']:.4f}, an error of {outcome['error']:+.2%}")


def _room(cluster: Cluster, sweep: Sweep) -> Cluster:
    """Size a local Ray for the concurrent trials; a named cluster stays as it is."""
    if cluster_address(cluster) is not None:
        return cluster
    at_a_time = sweep.parallel or max(1, (os.cpu_count() or 1) // (cluster.workers * (cluster.cpus_per_worker or 1)))
    return cluster.model_copy(update={"workers": cluster.workers * at_a_time})


def _resources(demand: Demand) -> PlacementGroupFactory:
    """A single rank trains in the process of its trial; several ranks get separate bundles."""
    if demand.workers > 1:
        return PlacementGroupFactory([{"memory": float(1 << 20)}])
    bundle = {"CPU": demand.bundle.cpus, "GPU": demand.bundle.gpus, "memory": demand.bundle.memory}
    return PlacementGroupFactory([{name: amount for name, amount in bundle.items() if amount}])


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _tune_folder(folder: SweepFolder) -> Path:
    path = folder.logs / "tune"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _check_measured(folder: SweepFolder) -> None:
    trials = folder.trials()
    if trials and all(trial.error for trial in trials):
        raise ShardyardError(f"all {len(trials)} trials failed; the first: {trials[0].error}")
