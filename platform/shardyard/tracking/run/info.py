"""run.json as a type, read from any version of the file.

Imports only the standard library, because the entry points of waiting jobs import it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypedDict, get_args

from shardyard.errors import RunFolderError
from shardyard.tracking.run import reading
from shardyard.tracking.run.waiting import Wait

# Version of run.json, events.jsonl and plan.json. Incremented when an existing key changes its meaning; not for new
# keys or for values of a new type that earlier readers treat as missing. Older folders count as 0 and are read the
# same way.
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
    """The job of a run. `submitted`: seconds since 1970. `retries`: attempts added by its policy.

    `scheduler`, `id`: a scheduler of another package, and the job there. `submission_id`, `address`: of Ray.
    """

    scheduler: str
    id: str
    submission_id: str
    address: str
    slurm_job_id: str
    name: str
    submitted: float
    tags: list[str]
    retries: int


class SweepInfo(TypedDict, total=False):
    """The sweep trial of a run. `took_over`: the trial and checkpoint whose weights it copied."""

    id: str
    trial: int
    parameters: Mapping[str, object]
    took_over: list[int | str]


class ShortenedInfo(TypedDict):
    """A run of `--try`: its steps, and the steps of the full recipe."""

    steps: int
    of: int


class GitInfo(TypedDict, total=False):
    """The state of the repository. `dirty`: whether files differ from the commit; None if unknown."""

    commit: str
    dirty: bool | None


class Provenance(TypedDict, total=False):
    """The origin of a run; see `provenance.collect`. `packages`: versions by name. `code`: external code by recipe
    field, with the hashes of its sources."""

    git: GitInfo
    packages: dict[str, str]
    python: str
    host: str | None
    system: str
    cpu: str
    cpus: int
    gpus: list[str]
    command: list[str]
    code: Mapping[str, Mapping[str, str | None]]


class SizesInfo(TypedDict, total=False):
    """Counted parameters of a model."""

    parameters: int
    matmul_parameters: int


class PlanInfo(TypedDict, total=False):
    """The keys that are read of a plan in run.json; for all see `planning.plan.RunPlan`."""

    steps: int
    tokens_per_step: int
    stages: list[Mapping[str, object]]
    architecture: SizesInfo
    bundle: str
    placement: str
    network: str


class PredictedInfo(TypedDict, total=False):
    """What the plan of a run predicted when its ranks started, before anything was measured.

    device_bytes: memory of a rank. The others only on one node of GPUs that the table of accelerators has.
    """

    device_bytes: int
    gpu: str
    tokens_per_second: float
    step_seconds: float
    mfu: float


class WeightsInfo(TypedDict, total=False):
    """Initial weights of a run: their name in the recipe, their path, and their fingerprint."""

    name: str
    path: str
    sha256: str


class DataInfo(TypedDict, total=False):
    """Values that determine the order of the training data. `tokenizer`: SHA-256. `lanes`: old name of `streams`."""

    tokenizer: str | None
    streams: int
    lanes: int
    seed: int
    sources: list[Mapping[str, object]]


class Place(TypedDict, total=False):
    """A host and its ranks in an attempt."""

    host: str
    address: str
    ranks: list[int]
    gpus: list[list[str]]
    pids: list[int]
    node: str


class RunFields(TypedDict, total=False):
    """The keys of run.json for `RunFolder.create` and `RunFolder.update`; `RunInfo` documents them."""

    state: str
    created: str | None
    started: str | None
    ended: str | None
    world_size: int | None
    attempts: int
    step: int
    total_steps: int | None
    provenance: Provenance
    driver: ProcessInfo
    local: bool
    plan: PlanInfo | None
    predicted: PredictedInfo
    job: JobInfo | None
    sweep: SweepInfo | None
    trial: ShortenedInfo | None
    starting: Mapping[str, WeightsInfo]
    data: DataInfo
    placement: list[Place] | None
    placed: str | None
    network: dict[str, list[str]]
    waiting: Wait | None
    outcome: str | None
    exit_code: int | None
    imported: dict[str, object]


@dataclass(frozen=True)
class RunInfo:
    """The contents of run.json. Times are ISO 8601 in UTC. Missing or invalid keys have their defaults.

    world_size: ranks. attempts: starts of the ranks so far. step: the last one. total_steps: the length of the run.
    driver: the process that drives the run; without it, a lost run cannot be detected.
    local: trained in the process of the command, without Ray.
    plan: the numbers of plan.json, without reasons. predicted: by the plan, to compare with what is measured.
    starting: initial weights with path and fingerprint, by dotted field of the recipe.
    data: fingerprint of the training data. placement, placed, network: of the newest attempt, by host.
    waiting: the current wait; None if it does not wait.
    outcome: of the newest attempt. exit_code: of the job.
    imported: the origin of a run that was trained elsewhere.
    raw: the object in the file, with unknown keys.
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
    provenance: Provenance = field(default_factory=Provenance)
    driver: ProcessInfo = field(default_factory=ProcessInfo)
    local: bool = False
    plan: PlanInfo = field(default_factory=PlanInfo)
    predicted: PredictedInfo = field(default_factory=PredictedInfo)
    job: JobInfo = field(default_factory=JobInfo)
    sweep: SweepInfo = field(default_factory=SweepInfo)
    trial: ShortenedInfo | None = None
    starting: dict[str, WeightsInfo] = field(default_factory=dict)
    data: DataInfo = field(default_factory=DataInfo)
    placement: list[Place] = field(default_factory=list)
    placed: str | None = None
    network: dict[str, list[str]] = field(default_factory=dict)
    waiting: Wait | None = None
    outcome: str | None = None
    exit_code: int | None = None
    imported: dict[str, object] = field(default_factory=dict)
    raw: dict[str, object] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, found: Mapping[str, object]) -> RunInfo:
        """Read the object of run.json, of any version up to this one.

        Raises:
            RunFolderError: it is from a newer version of Shardyard.
        """
        written = reading.integer(found.get("format")) or 0
        if written > FORMAT:
            raise RunFolderError(
                f"the run {found.get('id')} was written by a newer version of Shardyard (format {written}, this one "
                f"reads up to {FORMAT}); upgrade Shardyard to work with it."
            )
        known = {name: value for name, read in _READ.items() if (value := read(found.get(name))) is not None}
        return replace(cls(raw=dict(found)), **known)  # type: ignore[arg-type]


def _object(value: object) -> dict[str, object] | None:
    return value if isinstance(value, dict) else None


def _list(value: object) -> list[object] | None:
    return value if isinstance(value, list) else None


_TEXTS = ("id", "name", "state", "created", "started", "ended", "placed", "outcome")
_COUNTS = ("format", "world_size", "attempts", "step", "total_steps", "exit_code")
_OBJECTS = (
    *("provenance", "driver", "plan", "predicted", "job", "sweep", "trial", "starting", "data", "network", "imported"),
)
_READ: dict[str, Callable[[object], object]] = {
    **dict.fromkeys(_TEXTS, reading.text),
    **dict.fromkeys(_COUNTS, reading.integer),
    **dict.fromkeys(_OBJECTS, _object),
    "placement": _list,
    "local": reading.switch,
    "waiting": Wait.from_json,
}
