"""Uploading a run folder to Weights & Biases afterwards, as one run over all its restarts.

The merged metrics of the run folder are uploaded, not the files of W&B's offline attempts: those overlap if a restart
went back to a checkpoint, and `wandb sync` renumbers the steps of the later attempt. Only steps after the server's last
one are sent: an interrupted upload continues, and a repeated one sends nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shardyard.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    RecipeError,
    RunFolderError,
    ShardyardError,
    UsageError,
)
from shardyard.recipe.loading.yaml_source import read_document
from shardyard.redaction import scrub, scrub_all
from shardyard.tracking.files import decode, encode, write_atomically
from shardyard.tracking.run.events import WandbStatus, read_events, write_event
from shardyard.tracking.run.folder import RunFolder, now_text, read_metrics
from shardyard.tracking.run.reading import text
from shardyard.tracking.run.summary import summarize
from shardyard.tracking.wandb.mirror import has_key

INIT_TIMEOUT_SECONDS = 30.0
FINISH_TIMEOUT_SECONDS = 600.0
# The exit code reported to W&B, by the state of the run. A running run counts as successful so far.
_EXIT_CODES = {
    "failed": EXIT_FAILED,
    "lost": EXIT_FAILED,
    "interrupted": EXIT_INTERRUPTED,
    "preempted": EXIT_PREEMPTED,
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """The contents and destination of an upload. `steps`: the number of steps in the run folder."""

    run: RunFolder
    project: str
    entity: str | None
    group: str | None
    tags: tuple[str, ...]
    config: dict[str, object]
    state: str
    steps: int
    last_step: int | None
    attempts: int
    synced: Synced | None

    @property
    def is_done(self) -> bool:
        """Whether W&B has already confirmed the last step."""
        same = self.synced is not None and (self.synced.project, self.synced.entity) == (
            self.project,
            self.entity or self.synced.entity,
        )
        return same and self.synced is not None and self.synced.last_step == self.last_step


@dataclass(frozen=True)
class Synced:
    """The last confirmed upload of a run; stored in `wandb/synced.json` of the run folder."""

    url: str
    project: str
    entity: str
    last_step: int
    time: str


@dataclass(frozen=True)
class Uploaded:
    """The result of an upload: the URL of the run, and the number of steps sent."""

    url: str
    sent: int
    last_step: int


def offline_runs(runs: list[RunFolder]) -> list[RunFolder]:
    """The runs whose mirror was offline in some attempt, in order."""
    return [run for run in runs if _was_offline(run)]


def plan_upload(run: RunFolder, project: str | None = None, entity: str | None = None) -> Plan:
    """The upload of a run.

    `project` and `entity` take precedence over WANDB_PROJECT and WANDB_ENTITY, and these over the recipe.

    Raises:
        RunFolderError: the folder cannot be read, the run has no metrics, or it is still training online.
    """
    config = _config(run)
    tracking = _section(config, "tracking")
    wandb, tags = _section(tracking, "wandb"), tracking.get("tags")
    state = summarize(run).state
    if state == "running" and not _was_offline(run):
        raise RunFolderError(f"{run.id} is still training and uploads its metrics itself; wait until it has ended.")
    steps = _steps(run, complete=state != "running")
    if not steps:
        raise RunFolderError(f"{run.id} has no metrics yet, so there is nothing to upload.")
    return Plan(
        run=run,
        project=project or os.environ.get("WANDB_PROJECT") or str(wandb.get("project") or "shardyard"),
        entity=entity or os.environ.get("WANDB_ENTITY") or text(wandb.get("entity")),
        group=os.environ.get("WANDB_RUN_GROUP") or text(wandb.get("group")),
        tags=tuple(str(tag) for tag in tags) if isinstance(tags, list) else (),
        config=config,
        state=state,
        steps=len(steps),
        last_step=int(steps[-1]["step"]),
        attempts=len(_attempts(run)),
        synced=read_synced(run),
    )


def read_synced(run: RunFolder) -> Synced | None:
    """The record of an earlier upload; None if there is none or it cannot be read."""
    try:
        found = decode((run.wandb / "synced.json").read_text(encoding="utf-8"))
        return Synced(**{name: found[name] for name in Synced.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_account() -> None:
    """Raise UsageError if W&B has no key or is disabled."""
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes"):
        raise UsageError("WANDB_DISABLED is set, so nothing is uploaded; unset it.")
    if not has_key():
        raise UsageError(
            "W&B has no key here, so nothing was uploaded: run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL "
            "for a server of your own)."
        )


def upload(plan: Plan, progress: Progress = lambda done, total: None) -> Uploaded:
    """Send the steps that W&B lacks, wait until they are confirmed, and record that.

    Raises:
        ShardyardError: W&B cannot be reached, refuses the key, or has not confirmed the last step.
    """
    check_account()
    steps = _steps(plan.run, complete=plan.state != "running")
    with _quiet(), tempfile.TemporaryDirectory(prefix="shardyard-wandb-") as scratch:
        try:
            url, entity, sent = _send(plan, steps, Path(scratch), progress)
            confirmed = _confirmed(plan, Path(scratch)) if sent else int(steps[-1]["step"])
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            _teardown()
            raise ShardyardError(_refusal(plan, error)) from error
    _note(plan, Synced(url, plan.project, entity, min(confirmed, int(steps[-1]["step"])), now_text()))
    if confirmed < int(steps[-1]["step"]):
        raise ShardyardError(
            f"W&B has confirmed {plan.run.id} up to step {confirmed} of {steps[-1]['step']}. Run the command again to "
            "continue from there."
        )
    return Uploaded(url, sent, int(steps[-1]["step"]))


def _send(plan: Plan, steps: list[dict[str, float]], scratch: Path, progress: Progress) -> tuple[str, str, int]:
    """Send the steps; returns URL, entity and the number of steps sent."""
    began = float(steps[0].get("time") or 0.0)
    run = _begin(plan, scratch, began)
    # W&B refuses changes of existing steps, so only later ones are sent.
    missing = [line for line in steps if int(line["step"]) >= int(run.starting_step)]
    for number, line in enumerate(missing, 1):
        metrics = {name: value for name, value in line.items() if name not in ("step", "time")}
        if (moment := line.get("time")) is not None:
            metrics["_timestamp"] = float(moment)
        run.log(metrics, step=int(line["step"]))
        progress(number, len(missing))
    url, entity = str(run.url), str(run.entity)
    run.finish(exit_code=_EXIT_CODES.get(plan.state, EXIT_DONE))
    return url, entity, len(missing)


def _confirmed(plan: Plan, scratch: Path) -> int:
    """The last step on W&B's server. Closing a run does not confirm that everything arrived."""
    run = _begin(plan, scratch, None)
    last = int(run.starting_step) - 1
    run.finish(exit_code=_EXIT_CODES.get(plan.state, EXIT_DONE))
    return last


def _begin(plan: Plan, scratch: Path, began: float | None) -> Any:
    import wandb

    settings = wandb.Settings(
        mode="online",
        root_dir=str(scratch),
        silent=True,
        console="off",
        init_timeout=INIT_TIMEOUT_SECONDS,
        finish_timeout=FINISH_TIMEOUT_SECONDS,
        disable_code=True,
        disable_git=True,
        # Metadata and system metrics would describe this machine instead of the run.
        x_disable_meta=True,
        x_disable_stats=True,
        **({"x_start_time": began} if began else {}),
    )
    return wandb.init(
        id=plan.run.id,
        name=plan.run.id,
        project=plan.project,
        entity=plan.entity,
        group=plan.group,
        tags=scrub_all(list(plan.tags)),
        config=scrub_all(plan.config),
        resume="allow",
        settings=settings,
    )


def _teardown() -> None:
    """Stop W&B's service, which considers the run id of a failed upload in use."""
    import wandb

    with contextlib.suppress(BaseException):
        wandb.teardown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep W&B from printing, and from staying offline because of a variable."""
    chosen = {"WANDB_SILENT": "true", "WANDB_ERROR_REPORTING": "false", "WANDB_MODE": "online"}
    before = {name: os.environ.get(name) for name in chosen}
    os.environ.update(chosen)
    logging.getLogger("wandb").setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _refusal(plan: Plan, error: BaseException) -> str:
    text = scrub((str(error).strip().splitlines() or [type(error).__name__])[0].rstrip("."))
    if "401" in text or "not logged in" in text or "API key" in text:
        advice = "It rejects the key: `wandb login --relogin` gives another."
    elif "permission" in text or "403" in text or "404" in text:
        advice = "Check --project and --entity, and that the key may write there."
    else:
        advice = "Check the network and WANDB_BASE_URL, then run the command again: it continues from W&B's last step."
    return f"{plan.run.id} was not uploaded: {text}. {advice}"


def _note(plan: Plan, synced: Synced) -> None:
    """Record the upload in the run folder, and its URL in the events."""
    try:
        plan.run.wandb.mkdir(exist_ok=True)
        write_atomically(plan.run.wandb / "synced.json", encode(asdict(synced)) + "\n")
    except OSError as error:
        raise RunFolderError(
            f"{plan.run.wandb} cannot be written ({error.strerror}), so the address of {plan.run.id}, {synced.url}, "
            "was not recorded."
        ) from error
    if plan.synced is None or plan.synced.url != synced.url:
        write_event(plan.run.events, WandbStatus(mode="online", url=synced.url))


def _steps(run: RunFolder, *, complete: bool) -> list[dict[str, float]]:
    """One record per step; the last one of a training run may still lack its evaluation and is omitted."""
    try:
        steps = read_metrics(run.metrics)
    except OSError as error:
        raise RunFolderError(f"{run.metrics} cannot be read: {error.strerror}.") from error
    return steps if complete else steps[:-1]


def _attempts(run: RunFolder) -> list[Path]:
    return sorted(run.wandb.glob("offline-run-*"))


def _was_offline(run: RunFolder) -> bool:
    """Whether an attempt was offline. W&B's folders may be elsewhere (WANDB_DIR); then an event records it."""
    if _attempts(run):
        return True
    try:
        events = read_events(run.events)
    except OSError:
        return False
    return any(event.mode == "offline" for event in events if isinstance(event, WandbStatus))


def _config(run: RunFolder) -> dict[str, object]:
    try:
        found = read_document(run.resolved, str(run.resolved)).data
    except RecipeError as error:
        raise RunFolderError(f"{run.id} cannot be uploaded, because its recipe cannot be read: {error}") from error
    return dict(decode(encode(found)))


def _section(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    found = fields.get(name)
    return found if isinstance(found, Mapping) else {}
