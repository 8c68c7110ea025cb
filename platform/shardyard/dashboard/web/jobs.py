"""Jobs and nodes of all schedulers, queried on separate threads, so that one that hangs delays neither the page nor
others."""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from shardyard.dashboard.index.index import Index
from shardyard.errors import ShardyardError
from shardyard.launch.schedulers.base import JobHandle, JobStatus, NodeStatus, Resources, Scheduler
from shardyard.launch.schedulers.registry import configured
from shardyard.planning.placement import Amount
from shardyard.redaction import scrub

logger = logging.getLogger(__name__)

# The age at which an answer is refreshed; schedulers may require a longer interval.
FRESH_SECONDS = 2.0
# How long the page waits for a scheduler that has never answered, and for one with a recent change.
FIRST_SECONDS = 1.5
CHANGED_SECONDS = 10.0
# After this time a scheduler that has not answered is reported.
LATE_SECONDS = 20.0
# A running job has had time to create a run folder after this time; without one here, it is elsewhere.
STARTING_SECONDS = 120.0
MOST_LOG_CHARACTERS = 400_000


class JobPayload(TypedDict):
    """A job in the form sent to the page.

    id: in its scheduler. state: see `base.JobState`; scheduler_state: the scheduler's own state. run: id of its run,
    if it is in the runs folder. submitted, ended_at: seconds since 1970. waiting: the reason why its workers wait.
    """

    scheduler: str
    id: str
    name: str
    state: str
    scheduler_state: str
    ended: bool
    doing: str
    waiting: str | None
    message: str
    exit_code: int | None
    needs: str
    recipe: str
    tags: list[str]
    run: str | None
    submitted: float | None
    ended_at: float | None


class AmountPayload(TypedDict):
    """Resources."""

    CPU: float
    GPU: float


class GpuPayload(TypedDict):
    """A GPU; memory is in bytes, used and total."""

    name: str
    percent: float | None
    memory: tuple[int, int]


class NodePayload(TypedDict):
    """A node in the form sent to the page; see `base.NodeStatus`."""

    scheduler: str
    id: str
    name: str
    address: str
    head: bool
    up: bool
    problem: str
    total: AmountPayload
    free: AmountPayload | None
    cpu_percent: float | None
    memory: tuple[int, int] | None
    gpus: list[GpuPayload]


class SchedulerPayload(TypedDict):
    """A scheduler in the form sent to the page.

    answered: whether there is a result yet, even a failure. why: the reason why there is no answer, or none yet; "" if
    it answers. nodes_known: whether it reports its nodes.
    """

    name: str
    where: str
    available: bool
    answered: bool
    why: str
    nodes_known: bool


class JobsPayload(TypedDict):
    """The jobs, newest first. available: whether any scheduler answers; why: the reason of the first one."""

    available: bool
    why: str
    schedulers: list[SchedulerPayload]
    jobs: list[JobPayload]
    nodes: list[NodePayload]


@dataclass(frozen=True)
class _Answer:
    """The answer of a scheduler, or why there is none."""

    where: str = ""
    jobs: Sequence[JobStatus] = ()
    nodes: Sequence[NodeStatus] | None = None
    why: str = ""
    given: bool = True


class _Source:
    """A scheduler, queried by one thread at a time, and its latest answer."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self._changed = threading.Condition()
        self._answer: _Answer | None = None
        # The start times of the query in progress, and of the last answered one.
        self._asking: float | None = None
        self._asked = float("-inf")
        # Answers to earlier queries lack the latest change; until when the page waits for a later answer.
        self._valid_from = self._wait_until = float("-inf")

    def refresh(self, scheduler: Scheduler) -> None:
        """Start a query if the latest answer is too old and no query is in progress."""
        with self._changed:
            now = time.monotonic()
            fresh = now - self._asked < max(FRESH_SECONDS, scheduler.poll_seconds) and self._asked >= self._valid_from
            if self._asking is not None or fresh:
                return
            self._asking, self.scheduler = now, scheduler
        threading.Thread(target=self._ask, daemon=True, name=f"jobs-{scheduler.name}").start()

    def wait(self, deadline: float) -> None:
        """Wait for the first answer until `deadline`; after a change, longer if necessary."""
        with self._changed:
            left = max(deadline, self._wait_until) - time.monotonic()
            self._changed.wait_for(self._is_valid, timeout=max(0.0, left))

    def expire(self) -> None:
        """Invalidate the answer, because a job was submitted or stopped."""
        with self._changed:
            self._valid_from = time.monotonic()
            self._wait_until = self._valid_from + CHANGED_SECONDS

    @property
    def answer(self) -> _Answer:
        """The latest answer; if the current query is late, that there is none."""
        with self._changed:
            late = time.monotonic() - self._asking if self._asking is not None else 0.0
            if late > LATE_SECONDS:
                return _Answer(why=f"no answer for {late:.0f} s.")
            return self._answer or _Answer(why="it has not answered yet.", given=False)

    def _ask(self) -> None:
        while True:
            began = time.monotonic()
            answer = _asked(self.scheduler)
            with self._changed:
                self._answer, self._asked = answer, began
                if self._is_valid():
                    self._asking = None
                    self._changed.notify_all()
                    return
                self._asking = time.monotonic()

    def _is_valid(self) -> bool:
        return self._answer is not None and self._asked >= self._valid_from


def _asked(scheduler: Scheduler) -> _Answer:
    try:
        jobs = scheduler.list(ended=True)
        return _Answer(scheduler.where, jobs, _nodes(scheduler))
    except (ShardyardError, OSError) as error:
        return _Answer(why=scrub(str(error)))
    except Exception as error:
        logger.exception("asking %s for its jobs failed", scheduler.name)
        return _Answer(why=f"asking it failed ({type(error).__name__}); the terminal has more.")


def _nodes(scheduler: Scheduler) -> Sequence[NodeStatus] | None:
    """The nodes; None on an error, because jobs are shown even without nodes."""
    try:
        return scheduler.nodes()
    except (ShardyardError, OSError):
        return None


class Jobs:
    """The schedulers configured on this host, queried as rarely as the page allows.

    address: of the default one; None for the address from its environment.
    """

    def __init__(
        self,
        index: Index,
        address: str | None,
        schedulers: Callable[[str | None], Sequence[Scheduler]] = configured,
    ) -> None:
        self._index, self._address, self._schedulers = index, address, schedulers
        self._lock = threading.Lock()
        self._sources: dict[str, _Source] = {}

    def state(self) -> JobsPayload:
        """The current contents of the page. A scheduler that does not answer is shown with the reason."""
        try:
            sources = self._refreshed()
        except ShardyardError as error:
            return {"available": False, "why": scrub(str(error)), "schedulers": [], "jobs": [], "nodes": []}
        deadline = time.monotonic() + FIRST_SECONDS
        for source in sources:
            source.wait(deadline)
        answers = [(source.scheduler.name, source.answer) for source in sources]
        jobs = [(name, status) for name, answer in answers for status in answer.jobs]
        jobs.sort(key=lambda job: (job[1].submitted or 0.0, job[1].job.id), reverse=True)
        return {
            "available": any(not answer.why for _, answer in answers),
            "why": next((answer.why for _, answer in answers if answer.why), ""),
            "schedulers": [_scheduler(name, answer) for name, answer in answers],
            "jobs": [self._job(name, status) for name, status in jobs],
            "nodes": [_node(name, node) for name, answer in answers for node in answer.nodes or ()],
        }

    def expire(self, scheduler: str) -> None:
        """Query this scheduler again, because a job was submitted or stopped."""
        if (source := self._sources.get(scheduler)) is not None:
            source.expire()

    def find(self, job_id: str, scheduler: str | None = None) -> tuple[Scheduler, JobHandle] | None:
        """A listed job by its id, in this scheduler if given; None if no job or more than one matches."""
        with self._lock:
            sources = [source for name, source in self._sources.items() if scheduler in (None, name)]
        found = [
            (source.scheduler, status.job)
            for source in sources
            for status in source.answer.jobs
            if status.job.id == job_id
        ]
        return found[0] if len(found) == 1 else None

    def log(self, job_id: str, scheduler: str, lines: int) -> str | None:
        """The last lines of a job's output; None if the job does not exist.

        Raises:
            ShardyardError: its scheduler does not answer, or has no output of the job.
        """
        found = self.find(job_id, scheduler)
        if found is None:
            return None
        return scrub("".join(found[0].logs(found[1], lines=lines))[-MOST_LOG_CHARACTERS:])

    def _refreshed(self) -> list[_Source]:
        schedulers = self._schedulers(self._address)
        with self._lock:
            before = self._sources
            self._sources = {one.name: before.get(one.name) or _Source(one) for one in schedulers}
            sources = list(self._sources.values())
        for source, scheduler in zip(sources, schedulers, strict=True):
            source.refresh(scheduler)
        return sources

    def _job(self, scheduler: str, status: JobStatus) -> JobPayload:
        run = status.job.run_id or status.job.id
        key = self._index.key_of(run)
        row: sqlite3.Row | None = None
        if key is not None:
            row = self._index.store.reader.execute(
                "SELECT state, step, total_steps, loss, waiting, problem FROM runs WHERE key = ?", (key,)
            ).fetchone()
        return {
            "scheduler": scheduler,
            "id": status.job.id,
            "name": status.name or status.job.id,
            "state": status.state,
            "scheduler_state": status.native_state,
            "ended": status.ended,
            "doing": scrub(_doing(status, row)),
            "waiting": row["waiting"] if row is not None and status.state == "RUNNING" else None,
            "message": scrub(status.reason),
            "exit_code": status.exit_code,
            "needs": status.needs or _needs(status.resources),
            "recipe": status.recipe,
            "tags": list(status.tags),
            "run": run if key is not None else None,
            "submitted": status.submitted,
            "ended_at": status.ended_at,
        }


def _doing(status: JobStatus, row: sqlite3.Row | None) -> str:
    """The activity of a job, what it waits for, or how its run ended."""
    runs = status.state == "RUNNING"
    if status.state == "PENDING":
        return status.reason or "waits"
    if row is None:
        began = status.started or status.submitted or 0.0
        return (
            ("starting" if time.time() - began < STARTING_SECONDS else "its run is in another folder") if runs else ""
        )
    if row["waiting"] and runs:
        return str(row["waiting"])
    if not row["step"]:
        return "starting" if runs else str(row["state"])
    loss = f", loss {row['loss']:.4f}" if row["loss"] is not None else ""
    return f"step {row['step']}/{row['total_steps']}{loss}"


def _needs(resources: Resources) -> str:
    amounts = ((resources.nodes, "node"), (resources.cpus, "CPU core"), (resources.gpus, "GPU"))
    return ", ".join(f"{amount:g} {what}{'s' if amount != 1 else ''}" for amount, what in amounts if amount)


def _scheduler(name: str, answer: _Answer) -> SchedulerPayload:
    return {
        "name": name,
        "where": answer.where,
        "available": not answer.why,
        "answered": answer.given,
        "why": answer.why,
        "nodes_known": answer.nodes is not None,
    }


def _node(scheduler: str, node: NodeStatus) -> NodePayload:
    return {
        "scheduler": scheduler,
        "id": node.id,
        "name": node.name,
        "address": node.address,
        "head": node.head,
        "up": node.up,
        "problem": scrub(node.problem),
        "total": _amount(node.total),
        "free": None if node.free is None else _amount(node.free),
        "cpu_percent": node.cpu_percent,
        "memory": node.memory,
        "gpus": [{"name": gpu.name, "percent": gpu.percent, "memory": gpu.memory} for gpu in node.gpus],
    }


def _amount(amount: Amount) -> AmountPayload:
    return {"CPU": amount.cpus, "GPU": amount.gpus}
