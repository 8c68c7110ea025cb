"""Upload a run folder to Weights & Biases afterwards, as one run over all its restarts.

What is uploaded are the merged metrics of the run folder, not the files of W&B's offline attempts: those overlap
where a restart went back to a checkpoint, and `wandb sync` gives the steps of the later attempt new numbers. W&B's
server says which step it has last, and only later ones are sent: an upload that broke off goes on, and a repeated one
sends nothing.
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
# What W&B is told of a run, by its state. What runs still is shown as done so far.
_EXIT_CODES = {
    "failed": EXIT_FAILED,
    "lost": EXIT_FAILED,
    "interrupted": EXIT_INTERRUPTED,
    "preempted": EXIT_PREEMPTED,
}

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What an upload of a run would send, and where to. `steps`: how many steps the run folder has."""

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
        """Whether W&B has confirmed the last step before."""
        same = self.synced is not None and (self.synced.project, self.synced.entity) == (
            self.project,
            self.entity or self.synced.entity,
        )
        return same and self.synced is not None and self.synced.last_step == self.last_step


@dataclass(frozen=True)
class Synced:
    """What W&B is known to have of a run; kept in `wandb/synced.json` of the run folder."""

    url: str
    project: str
    entity: str
    last_step: int
    time: str


@dataclass(frozen=True)
class Uploaded:
    """What an upload did: the address of the run, and how many steps were sent."""

    url: str
    sent: int
    last_step: int


def offline_runs(runs: list[RunFolder]) -> list[RunFolder]:
    """Those whose mirror was offline in some attempt, in their order."""
    return [run for run in runs if _was_offline(run)]


def plan_upload(run: RunFolder, project: str | None = None, entity: str | None = None) -> Plan:
    """What is to be uploaded of a run.

    `project` and `entity` win over WANDB_PROJECT and WANDB_ENTITY, and these over the recipe.

    Raises:
        RunFolderError: the folder cannot be read, the run has no metrics, or it still trains and is online.
    """
    config = _config(run)
    tracking = _section(config, "tracking")
    wandb, tags = _section(tracking, "wandb"), tracking.get("tags")
    state = summarize(run).state
    if state == "running" and not _was_offline(run):
        raise RunFolderError(f"{run.id} still trains, and uploads its metrics itself; wait until it has ended.")
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
    """What an earlier upload has noted; None where there was none, or its note cannot be read."""
    try:
        found = decode((run.wandb / "synced.json").read_text(encoding="utf-8"))
        return Synced(**{name: found[name] for name in Synced.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_account() -> None:
    """Raise UsageError unless W&B would find a key, and may be asked."""
    if os.environ.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes"):
        raise UsageError("WANDB_DISABLED is set, so nothing is uploaded; unset it.")
    if not has_key():
        raise UsageError(
            "W&B has no key here, so nothing was uploaded: run `wandb login`, or set WANDB_API_KEY (and WANDB_BASE_URL "
            "for a server of your own)."
        )


def upload(plan: Plan, progress: Progress = lambda done, total: None) -> Uploaded:
    """Send the steps that W&B does not have yet, wait until it has them, and note it.

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
            f"W&B has confirmed {plan.run.id} up to step {confirmed} of {steps[-1]['step']}. Run the command again: it "
            "goes on from there."
        )
    return Uploaded(url, sent, int(steps[-1]["step"]))


def _send(plan: Plan, steps: list[dict[str, float]], scratch: Path, progress: Progress) -> tuple[str, str, int]:
    """Address, entity and the number of steps that were sent."""
    began = float(steps[0].get("time") or 0.0)
    run = _begin(plan, scratch, began)
    # W&B refuses to change a step that it has, so what comes is what is after its last one.
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
    """The last step that W&B's server has. Closing a run does not say whether all of it was taken."""
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
        # The metadata and figures would be those of this machine, not of the run.
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
    """W&B's service holds the id of a run whose upload failed as being in use."""
    import wandb

    with contextlib.suppress(BaseException):
        wandb.teardown()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """W&B says nothing of its own, and does not stay offline because a variable says so."""
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
        advice = "It does not take the key: `wandb login --relogin` gives another."
    elif "permission" in text or "403" in text or "404" in text:
        advice = "Check --project and --entity, and that the key may write there."
    else:
        advice = "Check the network and WANDB_BASE_URL, then run the command again: it goes on from what W&B has."
    return f"{plan.run.id} was not uploaded: {text}. {advice}"


def _note(plan: Plan, synced: Synced) -> None:
    """Beside the run, what W&B has; among its events, where it is to be found."""
    try:
        plan.run.wandb.mkdir(exist_ok=True)
        write_atomically(plan.run.wandb / "synced.json", encode(asdict(synced)) + "\n")
    except OSError as error:
        raise RunFolderError(
            f"{plan.run.wandb} cannot be written ({error.strerror}), so it is not noted there that {plan.run.id} is at "
            f"{synced.url}."
        ) from error
    if plan.synced is None or plan.synced.url != synced.url:
        write_event(plan.run.events, WandbStatus(mode="online", url=synced.url))


def _steps(run: RunFolder, *, complete: bool) -> list[dict[str, float]]:
    """One record a step; of a run that still trains the last one may lack its evaluation, and is left for later."""
    try:
        steps = read_metrics(run.metrics)
    except OSError as error:
        raise RunFolderError(f"{run.metrics} cannot be read: {error.strerror}.") from error
    return steps if complete else steps[:-1]


def _attempts(run: RunFolder) -> list[Path]:
    return sorted(run.wandb.glob("offline-run-*"))


def _was_offline(run: RunFolder) -> bool:
    """W&B's folders may be elsewhere (WANDB_DIR); the run has told, then, that it was offline."""
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
