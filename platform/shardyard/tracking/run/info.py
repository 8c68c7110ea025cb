"""run.json as a type: what is known of a run, from any version of the file.

Only the standard library is imported: the entry point of a job waits with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, get_args

from shardyard.errors import RunFolderError
from shardyard.tracking.run import reading
from shardyard.tracking.run.waiting import Wait

# Of run.json, events.jsonl and plan.json. It grows when a key that readers know changes its meaning; new keys do not
# change it, nor does a value of a new type that earlier readers take for a missing one. Folders written before it
# existed count as 0 and are read alike.
FORMAT = 1

State = Literal["pending", "running", "finished", "failed", "interrupted", "preempted"]
STATES: tuple[str, ...] = get_args(State)


class ProcessInfo(TypedDict, total=False):
    """The process that drives a run; see `holder.this_process`."""

    host: str
    pid: int
    pid_namespace: str
    boot_id: str
    process_start: int | None


class JobInfo(TypedDict, total=False):
    """The job that carries out a run. `submitted`: seconds since 1970. `retries`: attempts that its policy added."""

    submission_id: str
    address: str
    slurm_job_id: str
    name: str
    submitted: float
    tags: list[str]
    retries: int


class SweepInfo(TypedDict, total=False):
    """The trial of a sweep that a run is. `took_over`: trial and checkpoint whose weights it took."""

    id: str
    trial: int
    parameters: Mapping[str, object]
    took_over: list[Any]


class ShortenedInfo(TypedDict):
    """A run of `--try`: its steps, and those of the whole recipe."""

    steps: int
    of: int


class Place(TypedDict, total=False):
    """Where ranks of an attempt run: one host each."""

    host: str
    address: str
    ranks: list[int]
    gpus: list[list[str]]
    pids: list[int]
    node: str


class RunFields(TypedDict, total=False):
    """The keys of run.json that `RunFolder.create` and `RunFolder.update` take; the fields of `RunInfo` say more."""

    state: str
    created: str | None
    started: str | None
    ended: str | None
    world_size: int | None
    attempts: int
    step: int
    total_steps: int | None
    provenance: dict[str, Any]
    driver: ProcessInfo
    local: bool
    plan: dict[str, Any] | None
    job: JobInfo | None
    sweep: SweepInfo | None
    trial: ShortenedInfo | None
    starting: Mapping[str, object]
    data: Mapping[str, object]
    placement: list[Place] | None
    placed: str | None
    network: dict[str, list[str]]
    waiting: Wait | None
    outcome: str | None
    exit_code: int | None
    imported: dict[str, Any]


@dataclass(frozen=True)
class RunInfo:
    """What run.json says. Times are ISO 8601 in UTC. A key that is missing or holds something else has its default.

    world_size: ranks. attempts: starts of the ranks so far. step: the last one. total_steps: the length of the run.
    driver: process that drives the run; without it nobody can tell whether the run is lost.
    local: trained within the process of the command, without Ray.
    plan: the numbers of plan.json, without reasons.
    starting: by dotted field of the recipe, the weights that the run starts from, with path and fingerprint.
    data: fingerprint of the training data. placement, placed, network: of the newest attempt, by host.
    waiting: what keeps the run from training; None while nothing does.
    outcome: how the ranks of the newest attempt ended. exit_code: of the job.
    imported: where a run comes from that was trained elsewhere.
    raw: the object as it stands in the file, with keys that this version does not know.
    """

    id: str = ""
    format: int = 0
    name: str = ""
    state: str = "unknown"
    created: str | None = None
    started: str | None = None
    ended: str | None = None
    world_size: int | None = None
    attempts: int = 0
    step: int = 0
    total_steps: int | None = None
    provenance: dict[str, Any] = field(default_factory=dict)
    driver: ProcessInfo = field(default_factory=ProcessInfo)
    local: bool = False
    plan: dict[str, Any] = field(default_factory=dict)
    job: JobInfo = field(default_factory=JobInfo)
    sweep: SweepInfo = field(default_factory=SweepInfo)
    trial: ShortenedInfo | None = None
    starting: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    placement: list[Place] = field(default_factory=list)
    placed: str | None = None
    network: dict[str, list[str]] = field(default_factory=dict)
    waiting: Wait | None = None
    outcome: str | None = None
    exit_code: int | None = None
    imported: dict[str, Any] = field(default_factory=dict)
    raw: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> RunInfo:
        """Read the object of run.json, of any version up to this one.

        Raises:
            RunFolderError: a newer version of Shardyard wrote it.
        """
        written = reading.integer(found.get("format")) or 0
        if written > FORMAT:
            raise RunFolderError(
                f"the run {found.get('id')} was written by a newer version of Shardyard (format {written}, this one "
                f"reads up to {FORMAT}); upgrade Shardyard to work with it."
            )
        known = {name: value for name, read in _READ.items() if (value := read(found.get(name))) is not None}
        return cls(**known, raw=dict(found))


def _object(value: object) -> dict[str, Any] | None:
    return value if isinstance(value, dict) else None


def _list(value: object) -> list[Any] | None:
    return value if isinstance(value, list) else None


_TEXTS = ("id", "name", "state", "created", "started", "ended", "placed", "outcome")
_COUNTS = ("format", "world_size", "attempts", "step", "total_steps", "exit_code")
_OBJECTS = (*("provenance", "driver", "plan", "job", "sweep", "trial", "starting", "data", "network", "imported"),)
_READ: dict[str, Any] = {
    **dict.fromkeys(_TEXTS, reading.text),
    **dict.fromkeys(_COUNTS, reading.integer),
    **dict.fromkeys(_OBJECTS, _object),
    "placement": _list,
    "local": reading.switch,
    "waiting": Wait.from_json,
}
