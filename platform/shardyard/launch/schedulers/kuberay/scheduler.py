"""Kubernetes with KubeRay as a scheduler: each job is a RayJob with its own Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from shardyard.launch.jobs.submission import Report, SubmitRequest
from shardyard.launch.schedulers.base import Capacity, JobHandle, JobState, JobStatus, Resources, Scheduler
from shardyard.launch.schedulers.kuberay import api, jobs
from shardyard.launch.schedulers.kuberay.names import MAX_JOB_NAME, dns_name
from shardyard.launch.schedulers.kuberay.pods import RUNS_PATH

_STATES: dict[str, JobState] = {
    "RUNNING": "RUNNING",
    "SUCCEEDED": "SUCCEEDED",
    "FAILED": "FAILED",
    "STOPPED": "STOPPED",
}


class KubeRayScheduler(Scheduler):
    """The cluster of a context of the kubeconfig (the address), by default the current one."""

    name = "kuberay"
    files = "none"
    poll_seconds = 5.0

    @classmethod
    def is_configured(cls) -> bool:
        """Whether there is a kubeconfig, or this is a pod."""
        return api.is_configured()

    @property
    def where(self) -> str:
        """The context."""
        return f"Kubernetes ({self.address})" if self.address else "Kubernetes"

    @property
    def options(self) -> str:
        """The context, if one was given."""
        return f" --on {self.name}" + (f" --address {self.address}" if self.address else "")

    def submit(self, request: SubmitRequest, report: Report) -> JobHandle | None:
        """Submit through the Kubernetes API."""
        job_id = jobs.submit(replace(request, address=request.address or self.address), report)
        return self.status(JobHandle(self.name, job_id)).job if job_id else None

    def list(self, *, ended: bool = False) -> Sequence[JobStatus]:
        """Jobs in the namespace `default`; those of other namespaces are accessible by id, NAMESPACE/NAME."""
        found = [self._status(job) for job in jobs.jobs(context=self.address)]
        return [job for job in found if ended or not job.ended]

    def status(self, job: JobHandle) -> JobStatus:
        """The status from KubeRay's two states of a RayJob."""
        return self._status(jobs.state(job.id, self.address))

    def logs(self, job: JobHandle, *, follow: bool = False, lines: int | None = None) -> Iterator[str]:
        """Output of the newest submitter pod, which is the driver's."""
        found = jobs.logs(job.id, follow=follow, lines=lines, context=self.address)
        return (f"{line}\n" for line in found)

    def stop(self, job: JobHandle) -> None:
        """Delete the RayJob; its pods wait for a last checkpoint."""
        if not self.status(job).ended:
            jobs.cancel(job.id, self.address)

    def capacity(self) -> Capacity:
        """Unknown: the Role for jobs does not include reading nodes, and autoscalers add some."""
        return Capacity(None, grows=True)

    def _status(self, job: jobs.KubeJob) -> JobStatus:
        given = job.id.rpartition("/")[2]
        folder = Path(RUNS_PATH) / job.run_id if job.run_id else None
        return JobStatus(
            job=JobHandle(self.name, job.id, job.run_id, folder, self.address),
            # Without an explicit name the object is named after the run.
            name=job.recipe if given == dns_name(job.run_id, MAX_JOB_NAME) else given,
            state=_STATES.get(job.state, "PENDING"),
            native_state=job.state,
            reason=job.message,
            exit_code=job.exit_code,
            submitted=_seconds(job.created),
            started=_seconds(job.started),
            ended_at=_seconds(job.ended),
            resources=Resources(job.nodes, job.cpus, job.gpus),
            recipe=job.recipe,
            tags=job.tags,
        )


def _seconds(text: str | None) -> float | None:
    """Seconds since 1970 of a time such as 2026-01-02T03:04:05Z."""
    try:
        return datetime.fromisoformat(text or "").timestamp()
    except ValueError:
        return None
