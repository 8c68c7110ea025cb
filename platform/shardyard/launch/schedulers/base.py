"""The interface of a scheduler: submit, list, status, logs, stop, wait, capacity; and its types.

A scheduler is a folder beside this file, or a class that is registered by name (`registry`). All other code uses
schedulers through this interface only.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.jobs.named_files import Files
from shardyard.launch.jobs.progress import is_record
from shardyard.launch.jobs.submission import Report, SubmitRequest
from shardyard.planning.placement import Amount, Node
from shardyard.tracking.run.folder import RunFolder

# The states of a job under every scheduler; the names are Ray's.
JobState = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
ENDED: frozenset[str] = frozenset({"STOPPED", "SUCCEEDED", "FAILED"})

LOG_POLL_SECONDS = 1.0
# A restarting scheduler or a temporary network error does not end the wait for a job.
PATIENCE_SECONDS = 120.0
_Answer = TypeVar("_Answer")


class JobNotFoundError(UsageError):
    """The scheduler has no such job."""


@dataclass(frozen=True)
class JobHandle:
    """A job handle: the data with which the scheduler finds the job.

    scheduler: its name. id: the job's id there. run_id: id of its run; "" if unknown. run_folder: of the run, as the
    hosts of the job see it. address: of the scheduler, if there may be several.
    """

    scheduler: str
    id: str
    run_id: str = ""
    run_folder: Path | None = None
    address: str | None = None


@dataclass(frozen=True)
class Resources:
    """The resources of a job over all nodes; None if unknown."""

    nodes: int | None = None
    cpus: float | None = None
    gpus: float | None = None


@dataclass(frozen=True)
class JobStatus:
    """The status of a job.

    name: as given by the user. state: see `JobState`; native_state: the scheduler's own state.
    reason: the scheduler's reason for the wait or the end.
    exit_code: of the entry point (see docs/jobs.md), once it has ended, if the scheduler keeps it. submitted, started,
    ended_at: seconds since 1970, if known.
    needs: the resources in words. recipe, tags: as given to `submit`.
    """

    job: JobHandle
    name: str
    state: JobState
    native_state: str = ""
    reason: str = ""
    exit_code: int | None = None
    submitted: float | None = None
    started: float | None = None
    ended_at: float | None = None
    resources: Resources = field(default_factory=Resources)
    needs: str = ""
    recipe: str = ""
    tags: tuple[str, ...] = ()

    @property
    def ended(self) -> bool:
        """Whether it has ended."""
        return self.state in ENDED


@dataclass(frozen=True)
class Capacity:
    """The capacity of a scheduler.

    nodes: those that are up, with total and free resources; None if unknown. grows: whether nodes may be added
    automatically.
    """

    nodes: tuple[Node, ...] | None
    grows: bool = False


@dataclass(frozen=True)
class GpuLoad:
    """The load of a GPU, by all users. percent: None if not measured. memory: bytes in use, and total."""

    name: str
    percent: float | None
    memory: tuple[int, int]


@dataclass(frozen=True)
class NodeStatus:
    """A snapshot of a node, for display.

    head: whether it is the node that places jobs. up: whether it accepts jobs; problem: why it does not.
    total: its resources; free: unreserved resources, None if unknown.
    cpu_percent, memory (bytes in use, and total), gpus: measurements, if available.
    """

    id: str
    name: str
    total: Amount
    free: Amount | None
    address: str = ""
    head: bool = False
    up: bool = True
    problem: str = ""
    cpu_percent: float | None = None
    memory: tuple[int, int] | None = None
    gpus: tuple[GpuLoad, ...] = ()


class Scheduler(ABC):
    """Runs jobs. Creating one is cheap: nothing is sent before the first method call.

    Every method that queries the scheduler has its own time limit. It raises a ShardyardError if there is no answer,
    and a UsageError if the scheduler refuses or is not configured. A handle names a job; its scheduler and id are
    enough.

    name: by which it is registered. files: see `jobs.named_files.Files`.
    standing: whether jobs share an existing cluster. Its capacity is then queried before planning, and a job that could
    never fit is refused. Other schedulers start a cluster of the right size for each job.
    poll_seconds: interval at which one client may poll the state of a job.
    """

    name: ClassVar[str]
    files: ClassVar[Files] = "share"
    standing: ClassVar[bool] = False
    poll_seconds: float = 1.0

    def __init__(self, address: str | None = None) -> None:
        self.address = address

    @classmethod
    def is_configured(cls) -> bool:
        """Whether this host is configured for it, so that `ps` queries it. Must be instant: check files, not the
        network."""
        return True

    @classmethod
    def recorded_in(cls, folder: RunFolder) -> JobHandle | None:
        """The job of a run, from its run.json; None for a run without one, or with one of another scheduler."""
        job = folder.info().job
        if job.get("scheduler") != cls.name:
            return None
        return JobHandle(cls.name, str(job.get("id") or folder.id), folder.id, folder.path)

    @property
    def where(self) -> str:
        """How messages identify it: an address, or a name."""
        return self.address or self.name

    @property
    def options(self) -> str:
        """Command-line options that select it again; begins with a space."""
        return f" --on {self.name}"

    @abstractmethod
    def submit(self, request: SubmitRequest, report: Report) -> JobHandle | None:
        """Submit a job. With `request.dry_run` write what would be submitted to that file and submit nothing; the
        result is then None, or the handle that the job would have.

        Once this returns, `list` and `status` include the job. An error, including Ctrl-C, leaves neither a job nor a
        run folder behind.

        Raises:
            UsageError: the scheduler rejects the job, or could never run it.
        """

    @abstractmethod
    def list(self, *, ended: bool = False) -> Sequence[JobStatus]:
        """This user's jobs that Shardyard submitted, in any order; with `ended` also ended ones, as far as the
        scheduler remembers them."""

    @abstractmethod
    def status(self, job: JobHandle) -> JobStatus:
        """The current status of a job, with a complete handle.

        Raises:
            JobNotFoundError: there is no such job, or it has been forgotten.
        """

    @abstractmethod
    def logs(self, job: JobHandle, *, follow: bool = False, lines: int | None = None) -> Iterator[str]:
        """Pieces of the job's output, in order; with `follow` until it has ended.

        Args:
            lines: begin with this many last lines.

        Raises:
            JobNotFoundError: there is no such job.
            UsageError: it has no output that can be read here.
        """

    @abstractmethod
    def stop(self, job: JobHandle) -> None:
        """Stop a job, with a checkpoint if it trains; returns before it has ended. It then counts as STOPPED, or its
        scheduler forgets it. An ended job is unchanged.

        Raises:
            JobNotFoundError: there is no such job.
        """

    @abstractmethod
    def capacity(self) -> Capacity:
        """The capacity for jobs."""

    def nodes(self) -> Sequence[NodeStatus] | None:
        """The nodes, with their load if measured; by default those of `capacity`, None if unknown."""
        nodes = self.capacity().nodes
        return None if nodes is None else [NodeStatus(node.id, node.id, node.total, node.free) for node in nodes]

    def wait(self, job: JobHandle, timeout: float | None = None) -> JobStatus:
        """The status of a job once it has ended, or after `timeout` seconds. Tolerates a scheduler that does not answer
        for up to two minutes. A job that disappears meanwhile was deleted, and counts as STOPPED.

        Raises:
            JobNotFoundError: there is no such job at the start.
        """
        deadline = time.monotonic() + timeout if timeout is not None else float("inf")
        found = self.status(job)
        handle = found.job
        while not found.ended and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(self.poll_seconds, left))
            try:
                found = patiently(lambda: self.status(handle))
            except JobNotFoundError:
                return replace(found, state="STOPPED", reason="deleted")
        return found

    def follow_text(self, job: JobHandle, read: Callable[[], str], lines: int | None) -> Iterator[str]:
        """For `logs`: the growing text of `read`, until the job has ended."""
        polled_at, over = float("-inf"), False

        def ended() -> bool:
            nonlocal polled_at, over
            if time.monotonic() - polled_at >= self.poll_seconds:
                try:
                    over = self.status(job).ended
                except JobNotFoundError:
                    over = True
                polled_at = time.monotonic()
            return over

        return follow(read, ended, lines)


def follow(read: Callable[[], str], ended: Callable[[], bool], lines: int | None = None) -> Iterator[str]:
    """The growing text of `read` from its last `lines` on, until `ended`."""
    seen = 0
    while True:
        # Checked before reading, so that no text is missed.
        over, text = patiently(ended), patiently(read)
        if new := text[seen:] if seen else tail(text, lines):
            yield new
        seen = max(seen, len(text))
        if over:
            return
        time.sleep(LOG_POLL_SECONDS)


def tail(text: str, lines: int | None) -> str:
    """The last lines of a log, without counting progress records; all of it for None."""
    if lines is None:
        return text
    kept = text.splitlines(keepends=True)
    shown = [index for index, line in enumerate(kept) if not is_record(line)]
    begin = len(kept) if lines == 0 else shown[-lines] if lines < len(shown) else 0
    return "".join(kept[begin:])


def patiently(ask: Callable[[], _Answer]) -> _Answer:
    """Query a scheduler that may be temporarily unreachable.

    Raises:
        ShardyardError: it does not answer for too long, or (UsageError) refuses.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return ask()
        except UsageError:
            raise
        except ShardyardError:
            if time.monotonic() > deadline:
                raise
        time.sleep(LOG_POLL_SECONDS)
