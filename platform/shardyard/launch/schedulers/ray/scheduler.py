"""A Ray cluster as a scheduler: jobs go to its job server, and Shardyard's queue on its head orders them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from shardyard.launch.jobs.submission import Report, SubmitRequest
from shardyard.launch.schedulers.base import (
    Capacity,
    JobHandle,
    JobNotFoundError,
    JobState,
    JobStatus,
    NodeStatus,
    Resources,
    Scheduler,
    tail,
)
from shardyard.launch.schedulers.ray.api import JobsApi, RayJob, is_named
from shardyard.launch.schedulers.ray.jobs import autoscales, connect, nodes_of, submit
from shardyard.launch.schedulers.ray.nodes import ask
from shardyard.tracking.run.folder import RunFolder

# Metadata that marks a job as Shardyard's.
_OURS = "shardyard_run"
_STATES: dict[str, JobState] = {
    "RUNNING": "RUNNING",
    "SUCCEEDED": "SUCCEEDED",
    "FAILED": "FAILED",
    "STOPPED": "STOPPED",
}


class RayScheduler(Scheduler):
    """Ray's job server at a given address, or at the address from the environment or `shardyard cluster up`."""

    name = "ray"
    files = "travel"
    standing = True

    def __init__(self, address: str | None = None) -> None:
        super().__init__(address)
        self._api: JobsApi | None = None

    @classmethod
    def is_configured(cls) -> bool:
        """Whether an environment variable names a cluster, or one was started on this host."""
        return is_named()

    @classmethod
    def recorded_in(cls, folder: RunFolder) -> JobHandle | None:
        """The job of a run; jobs on Ray are recorded with the address of their cluster."""
        job = folder.info().job
        if "submission_id" not in job:
            return None
        return JobHandle(cls.name, str(job["submission_id"]), folder.id, folder.path, job.get("address"))

    @property
    def api(self) -> JobsApi:
        """The cluster's API, after checking that it answers and runs this version of Ray.

        Raises:
            ShardyardError: it does not.
        """
        if self._api is None:
            self._api = connect(self.address)
        return self._api

    @property
    def where(self) -> str:
        """URL of the dashboard."""
        return self.api.cluster.url

    @property
    def options(self) -> str:
        """The address."""
        return f" --address {self.where}"

    def submit(self, request: SubmitRequest, report: Report) -> JobHandle:
        """Submit through Ray's Jobs API; the id is known even for a dry run, because it is the run's id."""
        api = None if request.dry_run is not None else self.api
        job_id = submit(request, report, api)
        return JobHandle(self.name, job_id, job_id, request.runs_dir / job_id, api.cluster.url if api else None)

    def list(self, *, ended: bool = False) -> Sequence[JobStatus]:
        """Jobs of all users of the cluster."""
        found = [self._status(job) for job in self.api.jobs() if _OURS in (job.get("metadata") or {})]
        return [job for job in found if ended or not job.ended]

    def status(self, job: JobHandle) -> JobStatus:
        """The status from the job server."""
        found = self.api.job(job.id)
        if _OURS not in (found.get("metadata") or {}):
            raise JobNotFoundError(f"{job.id} at {self.where} is a Ray job that Shardyard did not submit.")
        return self._status(found)

    def logs(self, job: JobHandle, *, follow: bool = False, lines: int | None = None) -> Iterator[str]:
        """Output of the entry point and the driver."""
        if not follow:
            found = self.status(job)
            return self._text(found.job, lines)
        return self.follow_text(job, lambda: self.api.logs(job.id), lines)

    def _text(self, job: JobHandle, lines: int | None) -> Iterator[str]:
        yield tail(self.api.logs(job.id), lines)

    def stop(self, job: JobHandle) -> None:
        """Send SIGINT to the entry point."""
        self.api.stop(self.status(job).job.id)

    def capacity(self) -> Capacity:
        """The nodes that are alive, with their total resources."""
        return Capacity(tuple(nodes_of(self.api)), grows=autoscales(self.api))

    def nodes(self) -> Sequence[NodeStatus]:
        """The nodes, including recently dead ones, with the measurements of Ray's agents."""
        return ask(self.api)

    def _status(self, job: RayJob) -> JobStatus:
        metadata, identity = job.get("metadata") or {}, str(job["submission_id"])
        folder = metadata.get("shardyard_run_folder")
        state = _STATES.get(str(job["status"]), "PENDING")
        code = job.get("driver_exit_code")
        return JobStatus(
            job=JobHandle(self.name, identity, identity, Path(folder) if folder else None, self.api.cluster.url),
            name=str(metadata.get("job_name", "")),
            state=state,
            native_state=str(job["status"]),
            reason="Ray prepares it" if state == "PENDING" else str(job.get("message") or ""),
            exit_code=int(code) if code is not None else None,
            submitted=_seconds(job.get("start_time")),
            ended_at=_seconds(job.get("end_time")),
            resources=Resources(cpus=_number(metadata, "shardyard_cpus"), gpus=_number(metadata, "shardyard_gpus")),
            needs=str(metadata.get("shardyard_needs") or ""),
            recipe=str(metadata.get("shardyard_recipe") or ""),
            tags=tuple(tag for tag in str(metadata.get("shardyard_tags") or "").split(",") if tag),
        )


def _seconds(milliseconds: int | None) -> float | None:
    return milliseconds / 1000 if milliseconds else None


def _number(metadata: Mapping[str, str], key: str) -> float | None:
    return float(metadata[key]) if key in metadata else None
