"""Weights & Biases as a mirror of the run folder: everything happens on a separate thread, and nothing waits for it.

A restarted run stays one run at W&B: the same id, `resume="allow"`, explicit step numbers. Offline, each attempt has a
separate directory in `<run>/wandb`; `sync.py` uploads them as one run.
"""

from __future__ import annotations

import configparser
import contextlib
import netrc
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shardyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_PREEMPTED, EXIT_TIMEOUT
from shardyard.recipe.schema import Wandb
from shardyard.redaction import scrub, scrub_all
from shardyard.tracking.run.events import Event, WandbStatus
from shardyard.tracking.run.folder import typed
from shardyard.tracking.trackers.background import FINISH_TIMEOUT_SECONDS, QUEUE_RECORDS, Mirror, Status, reason
from shardyard.tracking.trackers.base import ExternalTracker

INIT_TIMEOUT_SECONDS = 15.0
# The exit code reported to W&B for each outcome; a paused run counts as successful.
EXIT_CODES = {
    "finished": EXIT_DONE,
    "paused": EXIT_DONE,
    "resized": EXIT_DONE,
    "interrupted": EXIT_INTERRUPTED,
    "preempted": EXIT_PREEMPTED,
    "timeout": EXIT_TIMEOUT,
    "failed": EXIT_FAILED,
}
_DEFAULT_SERVER = "https://api.wandb.ai"


def resolve_mode(settings: Wandb, environment: Mapping[str, str] | None = None) -> str:
    """online, offline or disabled: WANDB_MODE takes precedence; `auto` is online if a key is found. Makes no request.

    Values of WANDB_MODE that are valid in W&B but meaningless here (`shared`, `dryrun`) count as online and offline.
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
    """The identification of a run at W&B, without secrets."""

    id: str
    name: str
    tags: list[str]
    config: dict[str, object]


class WandbTracker(ExternalTracker):
    """An open run of W&B: `run` of its library."""

    run: Any = None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send one record."""
        self.run.log(dict(metrics), step=step)

    def finish(self, outcome: str) -> None:
        """Close the run with its outcome."""
        if outcome == "preempted":
            # W&B then shows the run as preempted instead of crashed, and its sweeps queue it again.
            self.run.mark_preempting()
        self.run.finish(exit_code=EXIT_CODES.get(outcome, EXIT_FAILED))


class WandbMirror(Mirror):
    """Copies records to W&B in the background.

    `folder` is the run folder; W&B's files go to `<folder>/wandb`, or below WANDB_DIR. `config` is shown as the run's
    configuration. `problems` lists failures as sentences, each once. No method raises.
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
        self._settings = settings
        self._identity = _Identity(scrub(run_id), scrub(name), scrub_all(list(tags)), scrub_all(dict(config)))
        self._typed = typed(Path(folder))
        self._root = Path(os.environ.get("WANDB_DIR") or folder)
        self._init_timeout_seconds = init_timeout_seconds
        self._finish_timeout_seconds = finish_timeout_seconds
        self._wandb = WandbTracker()
        super().__init__(self._wandb, "W&B", queue_records=queue_records)

    def status_event(self, status: Status) -> Event:
        """The event with the location of the run at W&B."""
        online = status.mode == "online"
        return WandbStatus(
            mode=status.mode, url=status.place if online else None, folder=None if online else status.place
        )

    def remains(self) -> str:
        """The folder in which W&B keeps unsent records, as text."""
        return f"its data is in {self._root / 'wandb'}"

    def begin(self) -> Status:
        """Open the run at W&B in the mode given by settings and environment."""
        return self._begin(resolve_mode(self._settings))

    def _begin(self, mode: str) -> Status:
        if mode == "disabled":
            return Status("disabled")
        if (why := _cannot_write(self._root / "wandb")) is not None:
            # W&B would otherwise silently write to a temporary folder.
            self.report_problem(f"{self._root / 'wandb'} cannot be written ({why}); continuing without.")
            return Status("disabled")
        try:
            self._wandb.run = self._init(mode)
        except Exception as error:  # whatever the error, offline mode still works
            if mode != "online":
                raise
            later = f"upload later with `shardyard wandb sync {self._typed}`"
            self.report_problem(f"no connection ({reason(error)}); continuing offline, {later}.")
            mode = "offline"
            self._release_run_id()
            self._wandb.run = self._init(mode)
        return Status(mode, self._wandb.run.url if mode == "online" else str(Path(self._wandb.run.dir).parent))

    def _init(self, mode: str) -> Any:
        # Even its silent mode prints the source of the key, unless the variable is set too; and its telemetry delays
        # the end of the process by 20 s if the server accepts connections but does not answer.
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
            # Its metadata has the command line, which under Ray contains credentials; provenance is in `config`.
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
        """Release the run id, which W&B's service considers in use even after a failed init."""
        import wandb

        wandb.teardown()


_VARIABLES = {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "group": "WANDB_RUN_GROUP"}


def _cannot_write(folder: Path) -> str | None:
    """Why no file can be created in the folder (which is created if missing); None if one can."""
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
