"""Weights & Biases as a mirror of the run folder: everything happens on a thread of its own, nothing ever waits for it.

A run that restarts stays one run at W&B: the same id, `resume="allow"`, explicit step numbers. Offline, each
attempt leaves a directory of its own in `<run>/wandb`; `wandb_sync.py` uploads the run as one.
"""

from __future__ import annotations

import collections
import configparser
import contextlib
import logging
import netrc
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shardyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_TIMEOUT
from shardyard.recipe.schema import Wandb
from shardyard.redaction import scrub, scrub_all
from shardyard.tracking.run.folder import typed

logger = logging.getLogger(__name__)

QUEUE_RECORDS = 10_000
INIT_TIMEOUT_SECONDS = 15.0
FINISH_TIMEOUT_SECONDS = 30.0
# What W&B is told of how a run ended, as the command that trains says it; a run that pauses has done what it should.
EXIT_CODES = {
    "finished": EXIT_DONE,
    "paused": EXIT_DONE,
    "interrupted": EXIT_INTERRUPTED,
    "preempted": EXIT_PREEMPTED,
    "timeout": EXIT_TIMEOUT,
    "failed": EXIT_FAILED,
}
_DEFAULT_SERVER = "https://api.wandb.ai"


@dataclass(frozen=True)
class Status:
    """`mode` is starting, online, offline or disabled; `place` is the run's URL, or its folder on this disk."""

    mode: str
    place: str | None = None

    def __str__(self) -> str:
        return f"W&B {self.mode}: {self.place}" if self.place else f"W&B {self.mode}"


def resolve_mode(settings: Wandb, environment: Mapping[str, str] | None = None) -> str:
    """online, offline or disabled: WANDB_MODE wins; `auto` is online where a key is found. Asks nobody anything.

    Values of WANDB_MODE that W&B itself knows but that have no meaning here (`shared`, `dryrun`) count as online
    and offline.
    """
    environment = os.environ if environment is None else environment
    mode = environment.get("WANDB_MODE", "").strip().lower() or settings.mode
    if environment.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes"):
        return "disabled"
    if mode == "auto":
        return "online" if has_key(environment) else "offline"
    return {"dryrun": "offline", "shared": "online", "run": "online"}.get(mode, mode)


def has_key(environment: Mapping[str, str] | None = None) -> bool:
    """Whether W&B would find credentials: WANDB_API_KEY, an identity token, its settings file, or a netrc entry."""
    environment = os.environ if environment is None else environment
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    settings = _settings_file(environment)
    server = environment.get("WANDB_BASE_URL") or settings.get("base_url") or _DEFAULT_SERVER
    return bool(settings.get("api_key")) or _in_netrc(urlsplit(server).netloc, environment)


@dataclass(frozen=True)
class _Identity:
    """What W&B knows a run by, without secrets."""

    id: str
    name: str
    tags: list[str]
    config: dict[str, object]


class WandbMirror:
    """Copies records to W&B in the background.

    `folder` is the run folder; W&B's files go to `<folder>/wandb`, or below WANDB_DIR. `config` is shown as the
    run's configuration. `problems` lists, once each and as sentences, what could not be done. No method raises.
    """

    def __init__(
        self,
        settings: Wandb,
        run_id: str,
        name: str,
        tags: Sequence[str],
        config: Mapping[str, object],
        folder: Path,
        *,
        queue_records: int = QUEUE_RECORDS,
        init_timeout_seconds: float = INIT_TIMEOUT_SECONDS,
        finish_timeout_seconds: float = FINISH_TIMEOUT_SECONDS,
    ) -> None:
        self.problems: list[str] = []
        self.dropped = 0
        self._settings = settings
        self._identity = _Identity(scrub(run_id), scrub(name), scrub_all(list(tags)), scrub_all(dict(config)))
        self._typed = typed(Path(folder))
        self._root = Path(os.environ.get("WANDB_DIR") or folder)
        self._init_timeout_seconds = init_timeout_seconds
        self._finish_timeout_seconds = finish_timeout_seconds
        self._queue: collections.deque[tuple[int, Mapping[str, float]]] = collections.deque()
        self._queue_records = queue_records
        self._changed = threading.Condition()
        self._closing = False
        self._outcome = "finished"
        self._status = Status("starting")
        self._run: Any = None
        self._thread = threading.Thread(target=self._work, name="wandb-mirror", daemon=True)

    def start(self) -> None:
        """Begin in the background; returns at once."""
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Hand over one record. When W&B is slower than training, the oldest records are dropped and counted."""
        with self._changed:
            if self._closing or self._status.mode == "disabled":
                return
            if len(self._queue) >= self._queue_records:
                self._queue.popleft()
                self.dropped += 1
            self._queue.append((step, metrics))
            self._changed.notify()

    def finish(self, timeout_seconds: float = FINISH_TIMEOUT_SECONDS, outcome: str = "finished") -> None:
        """Write what is left and close the run as it ended; gives up, with a problem, after the time-out."""
        with self._changed:
            self._outcome = outcome
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)
        if self._thread.is_alive():
            self._report_problem(
                f"W&B: did not finish within {timeout_seconds:.0f} s; what it has is in {self._root / 'wandb'}."
            )
        if self.dropped:
            self._report_problem(
                f"W&B: {self.dropped} records were dropped because it was too slow; the run folder has them all."
            )

    def status(self) -> Status:
        """Where the mirror stands; `starting` until W&B has answered."""
        return self._status

    def _work(self) -> None:
        try:
            self._status = self._begin(resolve_mode(self._settings))
            if self._run is None:
                return
            for step, metrics in self._records():
                self._run.log(dict(metrics), step=step)
            if self._outcome == "preempted":
                # W&B then shows the run as preempted instead of crashed, and its sweeps queue it again.
                self._run.mark_preempting()
            self._run.finish(exit_code=EXIT_CODES.get(self._outcome, EXIT_FAILED))
        except BaseException as error:  # noqa: BLE001 - wandb raises many kinds, SystemExit too; training goes on
            self._report_problem(f"W&B: {_reason(error)}; continuing without.")
            self._status = Status("disabled")
        finally:
            with self._changed:
                self._queue.clear()

    def _records(self) -> Iterator[tuple[int, Mapping[str, float]]]:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                record = self._queue.popleft()
            yield record

    def _begin(self, mode: str) -> Status:
        if mode == "disabled":
            return Status("disabled")
        if (reason := _cannot_write(self._root / "wandb")) is not None:
            # Left to itself, W&B would silently write to a temporary folder that nobody looks at.
            self._report_problem(f"W&B: {self._root / 'wandb'} cannot be written ({reason}); continuing without.")
            return Status("disabled")
        try:
            self._run = self._init(mode)
        except Exception as error:  # whatever keeps W&B from its server, offline still works
            if mode != "online":
                raise
            later = f"upload later with `shardyard wandb sync {self._typed}`"
            self._report_problem(f"W&B: no connection ({_reason(error)}); continuing offline, {later}.")
            mode = "offline"
            self._release_run_id()
            self._run = self._init(mode)
        return Status(mode, self._run.url if mode == "online" else str(Path(self._run.dir).parent))

    def _init(self, mode: str) -> Any:
        # Even its silent mode prints where the key came from, unless the variable says so too; and its own telemetry
        # holds up the end of the process for 20 s when the server accepts connections but does not answer.
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        settings = wandb.Settings(
            mode=mode,
            root_dir=str(self._root),
            silent=True,
            console="off",
            init_timeout=self._init_timeout_seconds,
            finish_timeout=self._finish_timeout_seconds,
            disable_code=True,
            # Its metadata holds the command line, which under Ray has credentials in it; provenance is in `config`.
            x_disable_meta=True,
        )
        place = {"project": self._settings.project, "entity": self._settings.entity, "group": self._settings.group}
        place = {key: None if os.environ.get(_VARIABLES[key]) else value for key, value in place.items()}
        return wandb.init(
            id=self._identity.id,
            name=self._identity.name,
            tags=self._identity.tags,
            config=self._identity.config,
            project=place["project"],
            entity=place["entity"],
            group=place["group"],
            resume="allow",
            settings=settings,
        )

    @staticmethod
    def _release_run_id() -> None:
        """After an init that failed, W&B's service still holds the id of the run as being in use."""
        import wandb

        wandb.teardown()

    def _report_problem(self, problem: str) -> None:
        problem = scrub(problem)
        if problem not in self.problems:
            self.problems.append(problem)
            logger.warning("%s", problem)


_VARIABLES = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "group": "WANDB_RUN_GROUP"}


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _cannot_write(folder: Path) -> str | None:
    """None when a file can be made in the folder, which is created if need be; otherwise why not."""
    probe = folder / f".probe-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        return error.strerror or str(error)
    return None


def _settings_file(environment: Mapping[str, str]) -> dict[str, str]:
    folder = environment.get("WANDB_CONFIG_DIR") or os.path.expanduser("~/.config/wandb")
    parser = configparser.ConfigParser(interpolation=None)
    with contextlib.suppress(configparser.Error, OSError, UnicodeDecodeError):
        parser.read(Path(folder) / "settings")
    return dict(parser["default"]) if parser.has_section("default") else {}


def _in_netrc(host: str, environment: Mapping[str, str]) -> bool:
    named = environment.get("NETRC")
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        with contextlib.suppress(OSError, netrc.NetrcParseError, UnicodeDecodeError):
            if netrc.netrc(os.path.expanduser(path)).authenticators(host):
                return True
    return False
