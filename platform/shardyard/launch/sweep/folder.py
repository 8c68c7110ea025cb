"""The folder of a sweep, `runs/sweeps/<id>/`: its definition, the results of its trials, and the stop request.

    sweep.yaml      the file as given        base.yaml    the recipe of all trials, with every default
    sweep.json      the sweep in one file    sweep.csv    its table
    trials/007.json the run of trial 7       logs/        output of the driver and Ray Tune

The state of a trial is the state of its run; only facts unknown to the run, such as an early stop, are stored here.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, Unpack

from shardyard.errors import RunFolderError, UsageError
from shardyard.launch.sweep.scaling_laws import FitData
from shardyard.planning.stages import milestones
from shardyard.recipe.code import with_absolute_files
from shardyard.recipe.loading.load import dump_recipe
from shardyard.recipe.sweep.load import LoadedSweep
from shardyard.recipe.sweep.schema import Sweep
from shardyard.recipe.sweep.trials import Parameters, flat
from shardyard.redaction import scrub, scrub_all
from shardyard.tracking.files import decode, encode, write_atomically
from shardyard.tracking.run.folder import RunFolder, now_text, owner, read_metrics, runs_dir_option, typed
from shardyard.tracking.run.holder import lives
from shardyard.tracking.run.info import ProcessInfo, RunInfo

FOLDER = "sweeps"
ENDED = ("finished", "stopped early", "failed")


class Prediction(TypedDict):
    """The prediction of a sweep's law for its test trial: weights, tokens, loss; after training also the measured loss
    and the relative error."""

    trial: int
    parameters: int
    tokens: int
    loss: float
    measured: float | None
    error: float | None


class SweepFile(TypedDict, total=False):
    """sweep.json. `seconds`: wall time over all resumes; `sweep`: its definition; `fit`: `Fit.as_dict`."""

    id: str
    name: str
    state: str
    created: str
    ended: str | None
    seconds: float
    recipe: str
    driver: ProcessInfo
    sweep: Mapping[str, object]
    trials: Sequence[Mapping[str, object]]
    fit: FitData
    prediction: Prediction


class TrialRecord(TypedDict, total=False):
    """trials/NNN.json. `stopped`: early, by the scheduler; `tune_id`: Ray Tune's id of the trial."""

    trial: int
    run: str
    tune_id: str
    parameters: Parameters
    error: str | None
    stopped: bool


@dataclass(frozen=True)
class TrialState:
    """The current state of a trial. `value`: the objective at the last evaluation; `parameters_of_model`: a count."""

    number: int
    parameters: Parameters
    run: str | None
    state: str
    step: int
    total_steps: int | None
    tokens: int
    value: float | None
    model_parameters: int | None
    matmul_parameters: int | None
    error: str | None = None


class SweepFolder:
    """One sweep on disk. Cheap to create; keeps no files open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self.id = self.path.name
        self.runs_dir = self.path.parent.parent
        self.yaml = self.path / "sweep.yaml"
        self.base = self.path / "base.yaml"
        self.info_file = self.path / "sweep.json"
        self.table = self.path / "sweep.csv"
        self.trials_dir = self.path / "trials"
        self.logs = self.path / "logs"
        self._stop = self.path / "stop.json"

    @classmethod
    def create(cls, runs_dir: Path, loaded: LoadedSweep) -> SweepFolder:
        """A new folder in the state `pending`.

        Raises:
            RunFolderError: it cannot be written.
        """
        folder = cls(
            runs_dir / FOLDER / f"{loaded.sweep.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        )
        try:
            folder.trials_dir.mkdir(parents=True)
            folder.logs.mkdir()
            write_atomically(folder.yaml, scrub(loaded.text))
            # Trials run in other working directories.
            write_atomically(folder.base, dump_recipe(with_absolute_files(loaded.base.recipe)))
            info = {"id": folder.id, "name": loaded.sweep.name, "state": "pending", "created": now_text()}
            counts = {"ended": None, "seconds": 0.0, "recipe": loaded.sweep.recipe, **owner()}
            folder._write({**info, **counts, "sweep": loaded.sweep.model_dump(), "trials": []})
        except OSError as error:
            raise RunFolderError(f"{folder.path} cannot be written: {error.strerror or error}.") from error
        return folder

    @classmethod
    def open(cls, runs_dir: Path, name: str) -> SweepFolder:
        """The sweep with this path, id or unique beginning of an id; `latest` is the one created last.

        Raises:
            RunFolderError: no sweep, or more than one, matches.
        """
        if (Path(name).expanduser() / "sweep.json").is_file():
            return cls(Path(name).expanduser())
        found = list_sweeps(runs_dir)
        if name == "latest" and found:
            return found[0]
        matches = [one for one in found if one.id == name] or [one for one in found if name and one.id.startswith(name)]
        if len(matches) == 1:
            return matches[0]
        listed = ", ".join(one.id for one in (matches or found)[:5])
        if matches:
            raise RunFolderError(f"{name!r} is the beginning of {len(matches)} sweeps: {listed}. Give more of it.")
        place = runs_dir / FOLDER
        start = f"shardyard sweep FILE{runs_dir_option(runs_dir)}"
        there = f"there are {listed}" if listed else f"there is none; `{start}` starts one"
        raise RunFolderError(f"No sweep in {place} is called {name!r}; {there}.")

    def info(self) -> SweepFile:
        """The contents of sweep.json.

        Raises:
            RunFolderError: it cannot be read.
        """
        try:
            info: SweepFile = decode(self.info_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.info_file} cannot be read ({error}); this is not a complete sweep folder."
            ) from error
        assert isinstance(info, dict)
        return info

    def update(self, **fields: Unpack[SweepFile]) -> None:
        """Change fields of sweep.json. Only one process may write it: the driver of the sweep."""
        self._write({**self.info(), **fields})

    def sweep(self) -> Sweep:
        """The definition of the sweep."""
        return Sweep.model_validate(self.info()["sweep"])

    @property
    def alive(self) -> bool:
        """Whether the driver runs, as far as this host can tell."""
        info = self.info()
        return info["state"] == "running" and _lives(info.get("driver") or {})

    def training(self) -> bool:
        """Whether a run of the sweep is active, as far as this host can tell."""
        runs = [run.info() for record in self.records() if (run := self.run_of(int(record["trial"]))) is not None]
        return any(info.state == "running" and _lives(info.driver) for info in runs)

    def request_stop(self) -> None:
        """Request that the driver stops all trials, with checkpoints, and ends."""
        write_atomically(self._stop, encode({"time": now_text()}) + "\n")

    def stop_requested(self) -> bool:
        """Whether a stop is requested."""
        return self._stop.exists()

    def clear_stop(self) -> None:
        """Remove the stop request, as a resumed sweep does."""
        self._stop.unlink(missing_ok=True)

    def record(self, number: int) -> TrialRecord:
        """The record of a trial; {} if it has not begun."""
        with contextlib.suppress(FileNotFoundError):
            found: TrialRecord = json.loads(self._trial(number).read_text(encoding="utf-8"))
            return found
        return {}

    def note(self, number: int, **fields: Unpack[TrialRecord]) -> None:
        """Change the record of a trial."""
        record = {"trial": number, **self.record(number), **fields}
        write_atomically(self._trial(number), json.dumps(scrub_all(record), indent=1) + "\n")

    def records(self) -> list[TrialRecord]:
        """The records of all trials that have begun, by number."""
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.trials_dir.glob("*.json"))]

    def run_of(self, number: int) -> RunFolder | None:
        """The run of a trial; None if it has none yet."""
        name = self.record(number).get("run")
        folder = self.runs_dir / name if name else None
        return RunFolder(folder) if folder is not None and (folder / "run.json").is_file() else None

    def trials(self) -> list[TrialState]:
        """The current states of all trials that have begun."""
        metric = self.sweep().objective.metric
        return [trial_state(self, record, metric) for record in self.records()]

    def write_table(self) -> None:
        """Write sweep.csv, and the trials in sweep.json."""
        trials = self.trials()
        rows = [flat(trial.parameters) for trial in trials]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["trial", "run", "state", "step", "tokens", "value", "model_parameters", *names])
        for trial, row in zip(trials, rows, strict=True):
            cells = [
                trial.number,
                trial.run,
                trial.state,
                trial.step,
                trial.tokens,
                trial.value,
                trial.model_parameters,
            ]
            writer.writerow([*cells, *(row.get(name) for name in names)])
        write_atomically(self.table, text.getvalue())
        self.update(trials=[trial.__dict__ for trial in trials])

    def _trial(self, number: int) -> Path:
        return self.trials_dir / f"{number:03d}.json"

    def _write(self, info: Mapping[str, object]) -> None:
        write_atomically(
            self.info_file, json.dumps(json.loads(encode(dict(info))), indent=1, ensure_ascii=False) + "\n"
        )


def list_sweeps(runs_dir: Path) -> list[SweepFolder]:
    """All sweeps of a runs folder, newest first."""
    found = [SweepFolder(path.parent) for path in (runs_dir / FOLDER).glob("*/sweep.json")]
    return sorted(found, key=lambda one: (str(one.info().get("created")), one.id), reverse=True)


def trial_state(folder: SweepFolder, record: TrialRecord, metric: str) -> TrialState:
    """The state of a trial, from its record and its run."""
    run = folder.run_of(int(record["trial"]))
    info = run.info() if run is not None else None
    lines = read_metrics(run.metrics) if run is not None else []
    measured = [line for line in lines if metric in line]
    plan = info.plan if info is not None else {}
    sizes, ends = plan.get("architecture") or {}, milestones(plan)
    step = int(lines[-1]["step"]) if lines else 0
    return TrialState(
        number=int(record["trial"]),
        parameters=dict(record.get("parameters") or {}),
        run=run.id if run is not None else None,
        state=_state(folder, record, info),
        step=step,
        total_steps=info.total_steps if info is not None else None,
        tokens=step * int(plan.get("tokens_per_step") or 0) if ends is None else int(ends.tokens_at(step)),
        value=float(measured[-1][metric]) if measured else None,
        model_parameters=sizes.get("parameters"),
        matmul_parameters=sizes.get("matmul_parameters"),
        error=record.get("error"),
    )


def best_trial(folder: SweepFolder, trials: list[TrialState]) -> TrialState | None:
    """The best finished trial, or else the best evaluated one; ties go to the lower number."""
    sweep = folder.sweep()
    sign = 1.0 if sweep.objective.mode == "min" else -1.0
    measured = [trial for trial in trials if trial.value is not None and trial.value == trial.value]
    candidates = [trial for trial in measured if trial.state == "finished"] or measured
    return min(candidates, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)


def require_best(folder: SweepFolder) -> TrialState:
    """The best trial.

    Raises:
        UsageError: no trial was evaluated.
    """
    found = best_trial(folder, folder.trials())
    if found is None:
        raise UsageError(
            f"no trial of {folder.id} was measured yet; `shardyard sweep show {typed(folder.path)}` tells how it goes."
        )
    return found


def _lives(driver: ProcessInfo) -> bool:
    return lives(driver) is not False


def _state(folder: SweepFolder, record: TrialRecord, info: RunInfo | None) -> str:
    state = info.state if info is not None else "failed" if record.get("error") else "waiting"
    if state == "finished":
        return state
    if record.get("stopped"):
        return "stopped early"
    if state == "running" and not folder.alive:
        return "lost"
    return state
