"""The folder of a run: its id, state, files, and stop request. Plain files are the source of truth.

Files are named in design order: recipe.yaml, resolved.yaml, plan.json, run.json, metrics.jsonl, events.jsonl,
samples.jsonl, logs/, wandb/, ledger/, checkpoints/, final/. Only `RunFolder` writes run.json, always by replacement.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import json
import os
import re
import secrets
import shlex
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypedDict, Unpack

from shardyard.errors import EXIT_FAILED, RunFolderError, TakenOverError
from shardyard.redaction import scrub
from shardyard.tracking.files import MetricsTail, decode, encode, write_atomically
from shardyard.tracking.run.holder import read_lease, this_process
from shardyard.tracking.run.info import FORMAT, STATES, ProcessInfo, RunFields, RunInfo
from shardyard.tracking.run.reading import integer

StopReason = Literal["interrupt", "preempt", "timeout"]

RUNS_VARIABLE = "SHARDYARD_RUNS"
DEFAULT_RUNS = "runs"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")


def runs_folder(option: str | os.PathLike[str] | None = None) -> Path:
    """The parent of run folders: `--runs-dir` if given, else SHARDYARD_RUNS, else ./runs; absolute."""
    return Path(option or os.environ.get(RUNS_VARIABLE) or DEFAULT_RUNS).expanduser().resolve()


def typed(folder: Path) -> str:
    """The name of a run (or sweep) for printed commands, quoted for a shell: its id if the default runs folder contains
    it, else its path, which works from any folder without `--runs-dir`."""
    here = runs_folder()
    return shlex.quote(folder.name if folder.parent in (here, here / "sweeps") else str(folder))


def runs_dir_option(folder: Path) -> str:
    """` --runs-dir FOLDER` for printed commands, quoted for a shell; "" if it is the default."""
    return "" if folder == runs_folder() else f" --runs-dir {shlex.quote(str(folder))}"


def now_text() -> str:
    """The time in the format of run.json: ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class RunFolder:
    """One run on disk. Cheap to create; keeps no files open.

    token: of the lease under which this process, or the sender of the folder, trains the run.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()
        self.id = self.path.name
        self.recipe = self.path / "recipe.yaml"
        self.resolved = self.path / "resolved.yaml"
        self.info_file = self.path / "run.json"
        self.plan = self.path / "plan.json"
        self.metrics = self.path / "metrics.jsonl"
        self.events = self.path / "events.jsonl"
        self.samples = self.path / "samples.jsonl"
        self.logs = self.path / "logs"
        self.wandb = self.path / "wandb"
        self.held_out = self.path / "held-out.safetensors"
        self.ledger = self.path / "ledger"
        self.checkpoints = self.path / "checkpoints"
        self.final = self.path / "final"
        self.adapter = self.path / "adapter"
        self.token: str | None = None
        self._stop = self.path / "stop.json"
        self._resize = self.path / "resize.json"

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RunFolder) and self.path == other.path

    def __hash__(self) -> int:
        return hash(self.path)

    @classmethod
    def create(
        cls,
        runs_dir: Path,
        name: str,
        recipe_text: str,
        resolved_text: str,
        *,
        run_id: str | None = None,
        plan_text: str | None = None,
        **fields: Unpack[RunFields],
    ) -> RunFolder:
        """A new folder `<name>-<date>-<time>-<4 random>` (UTC) in the state `pending`; never an existing one.

        `run_id` is given if the id was chosen earlier. `plan_text` becomes plan.json. `fields` are added to run.json,
        such as `total_steps`, `world_size` and `provenance`.

        Raises:
            RunFolderError: the name is not a folder name, the id is taken, or the runs folder is not writable.
        """
        if not _NAME.match(name):
            raise RunFolderError(
                f"{name!r} cannot name a run: use up to 80 letters, digits, '.', '_' and '-', starting with a letter "
                "or digit. Change `name` in the recipe."
            )
        try:
            runs_dir.mkdir(parents=True, exist_ok=True)
            path = _new_folder(runs_dir, name) if run_id is None else _named_folder(runs_dir, run_id)
        except OSError as error:
            raise unwritable(runs_dir, error) from error
        run = cls(path)
        try:
            run._fill(name, recipe_text, resolved_text, plan_text, fields)
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)
            raise unwritable(runs_dir, error) from error
        return run

    @classmethod
    def open(cls, runs_dir: Path, name: str | os.PathLike[str]) -> RunFolder:
        """The run with this path, id or unique beginning of an id; `latest` is the one created last, except those that
        ended before their first step.

        Raises:
            RunFolderError: no run, or more than one, matches; the message lists the nearest names.
        """
        text = os.fspath(name)
        path = Path(text).expanduser()
        if (path / "run.json").is_file():
            return cls(path)
        if os.sep in text.rstrip(os.sep) and path.is_dir():
            raise RunFolderError(f"{path} is not a run folder: it has no run.json. `shardyard runs` lists the runs.")
        return _find(list_runs(runs_dir), text.rstrip(os.sep), runs_dir)

    def info(self) -> RunInfo:
        """The contents of run.json.

        Raises:
            RunFolderError: run.json is missing, is not a JSON object, or comes from a newer version of Shardyard.
        """
        return RunInfo.from_json(self._read())

    def _read(self) -> dict[str, object]:
        try:
            info = decode(self.info_file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunFolderError(
                f"{self.info_file} cannot be read ({error}), so {self.path} is not a complete run folder. "
                "`shardyard runs` lists the runs that are."
            ) from error
        if not isinstance(info, dict):
            raise RunFolderError(f"{self.info_file} is not a JSON object; restore it or remove the folder.")
        return info

    def update(self, **fields: Unpack[RunFields]) -> RunInfo:
        """Change fields of run.json and return the new contents; concurrent updates do not undo each other, and unknown
        keys are kept.

        A change of `state` also sets `started` (first `running`) or `ended` (a final state). The process that sets
        `running` becomes the driver: once it is gone, the run is shown as lost.

        Raises:
            RunFolderError: run.json cannot be read or written.
            TakenOverError: another process has taken over the run.
        """
        assert fields.get("state", "pending") in STATES, fields.get("state")
        try:
            with locked(self.path):
                self.check_held()
                before = self.info()
                found = {**before.raw, **_times(before, fields.get("state")), **_as_json(fields)}
                write_atomically(self.info_file, _pretty(found))
        except OSError as error:
            raise unwritable(self.path, error) from error
        return RunInfo.from_json(found)

    def check_held(self) -> None:
        """Check that no other process has taken over the run.

        Raises:
            TakenOverError: one has.
        """
        lease = read_lease(self.path) if self.token is not None else None
        if lease is not None and lease["token"] != self.token:
            raise TakenOverError(
                f"{self.id} was taken over by process {lease.get('pid')} on {lease.get('host')}; this one has stopped "
                "without writing anything more. `shardyard runs` shows its progress."
            )

    @property
    def state(self) -> str:
        """One of `STATES`."""
        return self.info().state

    def request_stop(self, reason: StopReason) -> None:
        """Request that the training loop writes a checkpoint and stops; a later request replaces an earlier one.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        try:
            write_atomically(self._stop, encode({"reason": reason, "time": now_text()}) + "\n")
        except OSError as error:
            raise unwritable(self.path, error) from error

    def stop_requested(self) -> str | None:
        """Why the run should stop, or None; without a request this is one stat call, cheap enough for every step."""
        try:
            os.stat(self._stop)
            return str(json.loads(self._stop.read_text(encoding="utf-8"))["reason"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            # The file was created by hand, or the network disk has an error: its existence is the request.
            return "interrupt"

    def clear_stop(self) -> None:
        """Remove the stop request, as a resumed run does before it starts."""
        self._stop.unlink(missing_ok=True)

    def request_resize(self) -> None:
        """Request that the ranks write a checkpoint and end, so that more of them can go on.

        Raises:
            RunFolderError: the folder cannot be written.
        """
        try:
            write_atomically(self._resize, encode({"time": now_text()}) + "\n")
        except OSError as error:
            raise unwritable(self.path, error) from error

    def resize_requested(self) -> bool:
        """Whether the ranks should make room for more of them; one stat call."""
        return self._resize.exists()

    def clear_resize(self) -> None:
        """Remove the request, as a new attempt does before it starts."""
        self._resize.unlink(missing_ok=True)

    def _fill(self, name: str, recipe_text: str, resolved_text: str, plan_text: str | None, fields: RunFields) -> None:
        # Comments may contain secrets; recipes with secrets in fields have been refused already.
        write_atomically(self.recipe, scrub(recipe_text))
        write_atomically(self.resolved, resolved_text)
        if plan_text is not None:
            write_atomically(self.plan, plan_text)
        self.logs.mkdir(exist_ok=True)
        info: dict[str, object] = {
            "format": FORMAT,
            "id": self.id,
            "name": name,
            "state": "pending",
            "created": now_text(),
            "started": None,
            "ended": None,
        }
        counts = RunFields(world_size=None, attempts=0, step=0, total_steps=None, provenance={})
        # run.json comes last: readers ignore a folder without it.
        write_atomically(self.info_file, _pretty({**info, **counts, **owner(), **_as_json(fields)}))


class Owner(TypedDict):
    """The keys of run.json that identify the driver of the run."""

    driver: ProcessInfo


def owner() -> Owner:
    """This process as driver, for run.json; a run in the state `running` whose driver is gone is lost."""
    return {"driver": this_process()}


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """All runs of a folder, newest first; [] if the folder does not exist.

    Raises:
        RunFolderError: the folder exists but cannot be read.
    """
    try:
        found = [RunFolder(entry.path) for entry in os.scandir(runs_dir) if entry.is_dir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFolderError(f"{runs_dir} cannot be read: {error.strerror}. Give another --runs-dir.") from error
    dated = []
    for run in found:
        with contextlib.suppress(RunFolderError):
            dated.append((str(run.info().created), run.id, run))
    return [run for _, _, run in sorted(dated, key=lambda item: item[:2], reverse=True)]


def read_metrics(path: Path) -> list[dict[str, float]]:
    """metrics.jsonl by step, ascending: torn lines are ignored, later values of the same step replace earlier ones.

    Values are replaced one by one, so that the evaluation of a step may have a separate line.

    Raises:
        OSError: the file exists but cannot be read.
    """
    steps: dict[int, dict[str, float]] = {}
    for record in MetricsTail(path).new():
        if (step := integer(record.get("step"))) is not None:
            steps.setdefault(step, {}).update(record)
    return [steps[step] for step in sorted(steps)]


def _new_folder(runs_dir: Path, name: str) -> Path:
    while True:
        path = runs_dir / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _named_folder(runs_dir: Path, run_id: str) -> Path:
    """The folder of a new run. It may exist without run.json: a scheduler may have written its log there."""
    path = runs_dir / run_id
    path.mkdir(exist_ok=True)
    if (path / "run.json").exists():
        raise RunFolderError(f"{path} exists already; `shardyard resume {typed(path)}` goes on with that run.")
    return path


def _find(runs: list[RunFolder], text: str, runs_dir: Path) -> RunFolder:
    if text == "latest" and runs:
        # A run that failed before its first step is listed, but is never `latest`.
        return next((run for run in runs if not _never_trained(run)), runs[0])
    matches = [run for run in runs if run.id == text] or [run for run in runs if text and run.id.startswith(text)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(run.id for run in matches[:5]) + (", …" if len(matches) > 5 else "")
        raise RunFolderError(
            f"{text!r} is the beginning of {len(matches)} runs in {runs_dir}: {names}. Give more characters."
        )
    if not runs:
        what = f"There are no runs in {runs_dir}" if runs_dir.is_dir() else f"The runs folder {runs_dir} is not there"
        raise RunFolderError(
            f"{what}. Start one with `shardyard launch RECIPE{runs_dir_option(runs_dir)}`, or give another --runs-dir."
        )
    near = difflib.get_close_matches(text, [run.id for run in runs], n=3, cutoff=0.3) or [run.id for run in runs[:3]]
    raise RunFolderError(
        f"No run in {runs_dir} is called {text!r}. Nearest: {', '.join(near)}. "
        f"`shardyard runs{runs_dir_option(runs_dir)}` lists all."
    )


def _never_trained(run: RunFolder) -> bool:
    ended = run.state in ("failed", "interrupted", "preempted")
    return ended and not (run.metrics.is_file() and run.metrics.stat().st_size)


def _as_json(fields: RunFields) -> dict[str, object]:
    wait = fields.get("waiting")
    return {**fields, **({} if wait is None else {"waiting": wait.as_json()})}


def _times(before: RunInfo, state: str | None) -> dict[str, object]:
    if state is None or state == "pending":
        return {}
    if state == "running":
        return {"started": before.started or now_text(), "ended": None, **owner()}
    return {"ended": now_text()}


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock the folder itself, so that no lock file is left behind; without lock support of the disk, do nothing."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _pretty(info: dict[str, object]) -> str:
    return json.dumps(json.loads(encode(info)), indent=2, ensure_ascii=False) + "\n"


def unwritable(folder: Path, error: OSError) -> RunFolderError:
    """The error for a run folder or runs folder that is not writable. A full or broken disk is a failure of the run
    (exit code 1), not a usage error."""
    found = RunFolderError(
        f"{folder} cannot be written: {error.strerror or error}. Free some space or change its owner, or put runs "
        f"elsewhere with --runs-dir or {RUNS_VARIABLE}."
    )
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        found.exit_code = EXIT_FAILED
    return found
