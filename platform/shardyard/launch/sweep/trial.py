"""One trial of a sweep as a trainable of Ray Tune: an ordinary run that reports each evaluation.

The run trains on a separate thread and is observed through its folder, like any other run. It is stopped like a run
that a person stops, with a checkpoint. Members of a population instead train in stretches, because each may continue
from another's checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from ray import tune

from shardyard.engine.checkpoint.files import (
    committed_checkpoints,
    committed_folder,
    damaged_files,
    partial_folder,
    read_manifest,
    remove_partial,
)
from shardyard.engine.job import Job
from shardyard.engine.loop import Outcome
from shardyard.errors import CheckpointError
from shardyard.launch.run.output import redirect_output
from shardyard.launch.sweep.folder import SweepFolder
from shardyard.launch.sweep.run import carry_out, make_job
from shardyard.launch.sweep.search import TrialConfig
from shardyard.recipe.sweep.trials import Parameters
from shardyard.tracking.files import MetricsTail
from shardyard.tracking.metrics.record import TRAIN_TOKENS
from shardyard.tracking.run.folder import read_metrics

LOOK_SECONDS = 0.05
STOP_TIMEOUT_SECONDS = 600.0


class TrialCheckpoint(TypedDict):
    """Tune's checkpoint of a trial, passed to the trial that copies it: its number and its newest checkpoint."""

    trial: int
    checkpoint: str | None


@dataclass(frozen=True)
class Evaluation:
    """The objective of a run at an evaluation; `step` 0 and no value if the run was stopped before one."""

    run: str | None
    step: int = 0
    tokens: int = 0
    value: float | None = None


class TrialError(Exception):
    """A trial failed. Text only, so that it can be sent to the driver of the sweep."""


class SweepTrial(tune.Trainable):  # type: ignore[misc]
    """The trainable of a trial. `config`: sweep (path of its folder), cwd, number, parameters.

    The next trial reuses the actor, so that libraries are imported once.
    """

    _folder: SweepFolder
    _number: int
    _parameters: Parameters
    _metric: str
    _from: TrialCheckpoint | None
    _run: _FollowedRun | _StretchedRun | None

    def setup(self, config: TrialConfig) -> None:
        self._begin(config)

    def reset_config(self, new_config: TrialConfig) -> bool:
        self._end()
        self._begin(new_config)
        return True

    def step(self) -> dict[str, object]:
        """The next evaluation of the run; with `done` once it has ended."""
        try:
            if self._run is None and self._folder.stop_requested():
                return self._result(Evaluation(run=None), ended=True)
            if self._run is None:
                self._run = _begin_run(self._folder, self._number, self._parameters, self._from)
            return self._result(*self._run.next_result())
        except Exception as error:  # noqa: BLE001  whatever ends a trial is told to the sweep
            traceback.print_exc()
            message = str(error).strip() or type(error).__name__
            self._folder.note(self._number, error=message)
            raise TrialError(message) from None

    def save_checkpoint(self, checkpoint_dir: str) -> TrialCheckpoint:
        """The location of the run's newest checkpoint; the checkpoint itself stays in the run folder."""
        run = self._folder.run_of(self._number)
        committed = committed_checkpoints(run.checkpoints) if run is not None else []
        return {"trial": self._number, "checkpoint": str(committed[-1]) if committed else None}

    def load_checkpoint(self, checkpoint: TrialCheckpoint | str | None) -> None:
        """Load the result of `save_checkpoint` of this trial or of a better one."""
        assert isinstance(checkpoint, dict)
        if checkpoint["trial"] != self._number and checkpoint["checkpoint"] is not None:
            self._from = checkpoint

    def cleanup(self) -> None:
        self._end()

    def _begin(self, config: TrialConfig) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        with contextlib.suppress(OSError):  # the folder may not exist on another host; recipes then use absolute paths
            os.chdir(config["cwd"])
        self._folder = SweepFolder(config["sweep"])
        self._metric = self._folder.sweep().objective.metric
        self._parameters = config["parameters"]
        self._number = _number(self._folder, config["number"], self.trial_id, self._parameters)
        self._from = None
        self._run = None

    def _result(self, found: Evaluation, ended: bool) -> dict[str, object]:
        """The result for Tune. `ended` comes from the run; `done` is also set by Tune when a scheduler ends a trial."""
        result: dict[str, object] = {"step": found.step, "tokens": found.tokens, "run": found.run}
        result["number"] = self._number
        if found.value is not None:
            result[self._metric] = found.value
        return {**result, "done": True, "ended": True} if ended else result

    def _end(self) -> None:
        if self._run is not None:
            self._run.end()
            self._run = None


def _number(folder: SweepFolder, number: int, tune_id: str, parameters: Parameters) -> int:
    """Number of the trial. A member of a population that copied another's values keeps its own number."""
    owner = next((record for record in folder.records() if record.get("tune_id") == tune_id), None)
    if owner is None:
        folder.note(number, tune_id=tune_id, parameters=parameters)
        return number
    return int(owner["trial"])


def _begin_run(
    folder: SweepFolder, number: int, parameters: Parameters, taken: TrialCheckpoint | None
) -> _FollowedRun | _StretchedRun:
    sweep = folder.sweep()
    job = make_job(folder, sweep, number, parameters)
    redirect_output(job.folder.path / "logs" / "rank-0.log" if job.plan.world.size == 1 else folder.logs / "trials.log")
    if taken is not None and taken["checkpoint"] is not None:
        adopt(job, Path(taken["checkpoint"]))
        job.folder.update(sweep={**job.folder.info().sweep, "took_over": [taken["trial"], taken["checkpoint"]]})
    if sweep.population is not None:
        return _StretchedRun(job, folder, sweep.population.every)
    return _FollowedRun(job, folder, ended=bool(folder.record(number).get("stopped")))


class _FollowedRun:
    """A run on a thread; results are read from its folder. A run that has already ended is only read."""

    def __init__(self, job: Job, folder: SweepFolder, *, ended: bool) -> None:
        self._job, self._folder = job, folder
        self._metric = folder.sweep().objective.metric
        self._tail = MetricsTail(job.folder.metrics)
        self._found: deque[Evaluation] = deque()
        self._last: Evaluation | None = None
        self._error: BaseException | None = None
        self._outcome: Outcome = "finished"
        self._thread: threading.Thread | None = None
        if not ended and job.folder.state != "finished":
            self._thread = threading.Thread(target=self._train, name="shardyard-trial", daemon=True)
            # Before any request is possible, so that one that arrives during the start is not lost.
            self._job.folder.clear_stop()
            self._thread.start()

    def next_result(self) -> tuple[Evaluation, bool]:
        """Block until the next evaluation or the end; returns it, and whether it is the end."""
        while True:
            alive = self._thread is not None and self._thread.is_alive()
            self._look()
            if self._found:
                return self._result(self._found.popleft())
            if not alive:
                return self._ended()
            if self._folder.stop_requested() and self._job.folder.stop_requested() is None:
                self._job.folder.request_stop("interrupt")
            time.sleep(LOOK_SECONDS)

    def end(self) -> None:
        """Stop with a checkpoint."""
        if self._thread is not None and self._thread.is_alive():
            self._job.folder.request_stop("interrupt")
            self._thread.join(STOP_TIMEOUT_SECONDS)
        if self._thread is not None and self._thread.is_alive():
            raise TrialError(f"{self._job.folder.id} did not stop within {STOP_TIMEOUT_SECONDS:.0f} s")

    def _train(self) -> None:
        try:
            self._outcome = carry_out(self._job)
        except BaseException as error:  # noqa: BLE001  raised again by the next call of Tune
            traceback.print_exc()
            self._error = error

    def _look(self) -> None:
        seen = self._found[-1].step if self._found else self._last.step if self._last else 0
        for line in self._tail.new():
            if self._metric in line and line["step"] > seen:
                seen = int(line["step"])
                self._found.append(_evaluation(self._job, line, self._metric))

    def _result(self, found: Evaluation) -> tuple[Evaluation, bool]:
        self._last = found
        if found.step < self._job.plan.steps:
            return found, False
        # The model is exported after the last evaluation; the trial is done after the export.
        if self._thread is not None:
            self._thread.join()
        return self._ended()

    def _ended(self) -> tuple[Evaluation, bool]:
        if self._error is not None:
            raise self._error
        return self._last or _unmeasured(self._job, self._outcome), True


class _StretchedRun:
    """A run that pauses at each multiple of `every` steps, with a checkpoint from which others may continue."""

    def __init__(self, job: Job, folder: SweepFolder, every: int) -> None:
        self._job, self._folder, self._every = job, folder, every
        self._metric = folder.sweep().objective.metric

    def next_result(self) -> tuple[Evaluation, bool]:
        """Train to the next pause; returns the evaluation, and whether the run has ended."""
        committed = committed_checkpoints(self._job.folder.checkpoints)
        step = int(committed[-1].name.removeprefix("step-")) if committed else 0
        target = min((step // self._every + 1) * self._every, self._job.plan.steps)
        outcome: Outcome = "finished"
        if self._folder.stop_requested():
            outcome = "interrupted"
        elif self._job.folder.state != "finished":
            self._job.folder.clear_stop()
            outcome = carry_out(Job(self._job.recipe, self._job.plan, self._job.folder, target))
        measured = [line for line in read_metrics(self._job.folder.metrics) if self._metric in line]
        reached = [line for line in measured if line["step"] <= target]
        if not reached:
            return _unmeasured(self._job, outcome), True
        return _evaluation(self._job, reached[-1], self._metric), outcome != "paused"

    def end(self) -> None:
        """Does nothing: no training runs between two stretches."""


def _unmeasured(job: Job, outcome: Outcome) -> Evaluation:
    """The result of a run that was stopped before its first evaluation.

    Raises:
        TrialError: the run was not stopped.
    """
    if outcome == "finished":
        raise TrialError(f"{job.folder.id} ended without an evaluation")
    return Evaluation(job.folder.id)


def _evaluation(job: Job, line: Mapping[str, Any], metric: str) -> Evaluation:
    """The evaluation in a line of metrics.jsonl that has the metric."""
    tokens = line.get(TRAIN_TOKENS, job.plan.tokens_at(line["step"]))
    return Evaluation(job.folder.id, line["step"], tokens, line[metric])


def adopt(job: Job, source: Path) -> None:
    """Replace this run's checkpoints with a checkpoint of another run.

    Raises:
        CheckpointError: the checkpoint is missing or damaged.
    """
    checkpoints = job.folder.checkpoints
    checkpoints.mkdir(parents=True, exist_ok=True)
    remove_partial(checkpoints)
    step = int(source.name.removeprefix("step-"))
    partial, committed = partial_folder(checkpoints, step), committed_folder(checkpoints, step)
    try:
        shutil.copytree(source, partial)
    except OSError as error:
        raise CheckpointError(f"{source} cannot be taken over: {error}") from error
    damaged = damaged_files(partial, read_manifest(partial))
    if damaged:
        raise CheckpointError(f"{source} cannot be taken over: {', '.join(damaged)} differ from the manifest")
    # This run's own checkpoints from that step on are worse, and would count as its newest state.
    for own in committed_checkpoints(checkpoints):
        if int(own.name.removeprefix("step-")) >= step:
            shutil.rmtree(own)
    partial.rename(committed)
