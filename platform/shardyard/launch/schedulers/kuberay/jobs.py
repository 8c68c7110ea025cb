"""Jobs under KubeRay: submitted through the Kubernetes API, or written as manifests; listed, followed, cancelled."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from shardyard import __version__
from shardyard.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, UsageError
from shardyard.launch.jobs.spec import new_run_id, spec_of
from shardyard.launch.jobs.submission import Report, SubmitRequest
from shardyard.launch.schedulers.kuberay import api as kube
from shardyard.launch.schedulers.kuberay.manifests import ConfigMap, RayJob
from shardyard.launch.schedulers.kuberay.names import MAX_JOB_NAME, PREFIX, dns_name
from shardyard.launch.schedulers.kuberay.pods import RUNS_PATH
from shardyard.launch.schedulers.kuberay.render import (
    MANAGED_LABELS,
    QUEUE_LABEL,
    RUN_ANNOTATION,
    RayJobInputs,
    describe,
    render_job,
)
from shardyard.launch.schedulers.kuberay.yaml import to_yaml

DEFAULT_NAMESPACE = "default"
SELECTOR = ",".join(f"{key}={value}" for key, value in MANAGED_LABELS.items())
STANDARD_OUTPUT = Path("-")
LOG_POLL_SECONDS = 2.0

# KubeRay's jobDeploymentStatus before Ray has the job → what it waits for.
_WAITING = {
    "": "KubeRay's operator to start it",
    "New": "KubeRay's operator to start it",
    "Initializing": "its pods to start",
    "Waiting": "Ray to start it",
    "Retrying": "a new cluster after a failure",
    "Suspending": "its pods to end after a last checkpoint",
    "Suspended": "being resumed (spec.suspend)",
}


@dataclass(frozen=True)
class KubeJob:
    """A job as Kubernetes knows it.

    id: `namespace/name`. run_id: of its run folder. state: one of Ray's PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED.
    message: what it waits for, or why it failed. exit_code: of a job that has ended.
    created, started, ended: ISO 8601, if reached. nodes, cpus, gpus: of its workers.
    """

    id: str
    run_id: str
    recipe: str
    state: str
    message: str
    exit_code: int | None
    created: str
    started: str | None
    ended: str | None
    ray_cluster: str | None
    tags: tuple[str, ...] = ()
    nodes: int | None = None
    cpus: float | None = None
    gpus: float | None = None


def submit(request: SubmitRequest, report: Report) -> str:
    """Create the job, or write its manifests with `request.dry_run` (`-` is standard output).

    Returns:
        The job's id, `namespace/name`; empty if nothing was submitted.

    Raises:
        RecipeError: Kubernetes would reject the settings. ShardyardError, UsageError: the cluster cannot be reached or
        rejects the job; nothing is left behind.
    """
    spec = _spec(request)
    config_map, job = render_job(spec)
    identity = f"{job['metadata']['namespace']}/{job['metadata']['name']}"
    _warn(request, report)
    if request.dry_run is not None:
        _write(request, spec, [config_map, job], report)
        return ""
    kube.create_job(kube.connect(request.address), job, config_map)
    if QUEUE_LABEL in job["metadata"]["labels"]:
        report(f"{identity} waits in Kueue's queue {job['metadata']['labels'][QUEUE_LABEL]} until resources are free")
    return identity


def _spec(request: SubmitRequest) -> RayJobInputs:
    recipe = request.loaded.recipe
    run_id = request.run_id or new_run_id(recipe.name)
    # An explicit name is kept, so that a second job with this name is refused.
    name = dns_name(run_id if request.job_name == recipe.name else request.job_name, MAX_JOB_NAME)
    inside = replace(request, run_id=run_id, runs_dir=Path(RUNS_PATH))
    job_file = json.dumps(spec_of(inside), indent=1)
    return RayJobInputs(name, run_id, recipe, request.plan, job_file)


def _warn(request: SubmitRequest, report: Report) -> None:
    cluster = request.loaded.recipe.cluster
    if cluster.gpus_per_worker is None and not request.plan.world.gpu:
        report("the pods get no GPUs, because there are none here; cluster.gpus_per_worker=1 asks for them")
    if request.working_dir is not None:
        report(
            f"files of {request.working_dir} are not uploaded to Kubernetes; pods see those of the image and the volume"
        )


def _write(request: SubmitRequest, spec: RayJobInputs, manifests: Sequence[ConfigMap | RayJob], report: Report) -> None:
    assert request.dry_run is not None
    comments = [
        f"shardyard submit {request.name} --on kuberay, Shardyard {__version__}",
        f"run {spec.run_id}",
        *describe(spec.recipe, spec.plan),
    ]
    text = to_yaml(manifests, comments)
    if request.dry_run == STANDARD_OUTPUT:
        sys.stdout.write(text)
        return
    try:
        request.dry_run.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{request.dry_run} cannot be written: {error.strerror}.") from error
    report(f"wrote {request.dry_run}; `kubectl create -f {request.dry_run}` submits it")


def state(job_id: str, context: str | None = None) -> KubeJob:
    """A job by its id, `namespace/name`, or by its name in the namespace default.

    Raises:
        ShardyardError, UsageError: it does not exist, or may not be read.
    """
    api = kube.connect(context)
    return _job(api, kube.get_job(api, *split_id(job_id)))


def jobs(namespace: str = DEFAULT_NAMESPACE, context: str | None = None) -> list[KubeJob]:
    """The jobs of a namespace that were submitted from recipes, newest first.

    Raises:
        ShardyardError, UsageError: they may not be read, or KubeRay is not installed.
    """
    api = kube.connect(context)
    found = [_job(api, item) for item in kube.list_jobs(api, namespace, SELECTOR)]
    return sorted(found, key=lambda job: job.created, reverse=True)


def cancel(job_id: str, context: str | None = None) -> None:
    """Delete a job and its cluster. Its pods wait for a last checkpoint first, so that the run can be resumed.

    Raises:
        ShardyardError, UsageError: it does not exist, or may not be deleted.
    """
    kube.delete_job(kube.connect(context), *split_id(job_id))


def logs(
    job_id: str,
    *,
    follow: bool = False,
    lines: int | None = None,
    context: str | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """Lines of the driver's output, without line ends, from its last `lines`; with `follow` until the job is over.

    Raises:
        ShardyardError, UsageError: there is no such job or, without `follow`, no output yet.
    """
    api = kube.connect(context)
    namespace, name = split_id(job_id)
    while True:
        job = _job(api, kube.get_job(api, namespace, name))
        pod = kube.newest_pod(api, namespace, name)
        if pod is not None and pod.status.phase in ("Running", "Succeeded", "Failed"):
            yield from kube.pod_log(api, namespace, pod.metadata.name, follow=follow, lines=lines)
            return
        if not follow or job.state not in ("PENDING", "RUNNING"):
            raise UsageError(f"{job.id} is {job.state} and has no output{f': {job.message}' if job.message else ''}.")
        sleep(LOG_POLL_SECONDS)


def split_id(job_id: str) -> tuple[str, str]:
    """Namespace and name.

    Raises:
        UsageError: the text is not an id.
    """
    namespace, slash, name = job_id.rpartition("/")
    if not name or "/" in namespace or (slash and not namespace):
        raise UsageError(
            f"{job_id!r} is not the id of a Kubernetes job; ids are NAMESPACE/NAME, as `shardyard submit` prints them."
        )
    return namespace or DEFAULT_NAMESPACE, name


def _job(api: kube.KubeApi, item: RayJob) -> KubeJob:
    metadata, status = item["metadata"], item.get("status") or {}
    annotations = metadata.get("annotations") or {}
    current, message = _state(item)
    if current == "PENDING" and status.get("jobDeploymentStatus") == "Suspended" and _queue(item):
        reason = kube.queue_message(api, metadata["namespace"], metadata["uid"])
        message = f"waits in Kueue's queue {_queue(item)}" + (f": {reason}" if reason else "")
    return KubeJob(
        id=f"{metadata['namespace']}/{metadata['name']}",
        run_id=annotations.get(RUN_ANNOTATION, ""),
        recipe=annotations.get(f"{PREFIX}/recipe", ""),
        state=current,
        message=message,
        exit_code=_exit_code(current, message),
        created=metadata.get("creationTimestamp") or "",
        started=status.get("startTime"),
        ended=status.get("endTime"),
        ray_cluster=status.get("rayClusterName") or None,
        tags=tuple(tag for tag in annotations.get(f"{PREFIX}/tags", "").split(", ") if tag),
        **_sizes(item),
    )


class _Sizes(TypedDict, total=False):
    nodes: int
    cpus: float
    gpus: float


def _sizes(item: RayJob) -> _Sizes:
    """The resources of the job's workers, as written by `render.cluster_spec`; empty for manifests of other tools."""
    try:
        groups = item["spec"]["rayClusterSpec"]["workerGroupSpecs"]
        counts = [int(group["replicas"]) for group in groups]
        have = [group["rayStartParams"] for group in groups]
        cpus = sum(count * float(one["num-cpus"]) for count, one in zip(counts, have, strict=True))
        gpus = sum(count * float(one["num-gpus"]) for count, one in zip(counts, have, strict=True))
    except (KeyError, TypeError, ValueError):
        return {}
    return {"nodes": sum(counts), "cpus": cpus, "gpus": gpus}


def _state(item: RayJob) -> tuple[str, str]:
    """Ray's state of a job and a message, from KubeRay's two states."""
    status = item.get("status") or {}
    deployment, ray = status.get("jobDeploymentStatus") or "", status.get("jobStatus") or ""
    text = status.get("message") or status.get("reason") or ""
    if deployment in ("Failed", "ValidationFailed"):
        return "FAILED", text
    if deployment == "Complete":
        return ray or "SUCCEEDED", text
    if deployment in _WAITING and (deployment or not ray):
        return "PENDING", f"waits for {_WAITING[deployment]}"
    return ray or "PENDING", text


def _exit_code(current: str, message: str) -> int | None:
    """The exit code in Ray's message about an entrypoint; without one, the job failed for another reason."""
    if current in ("PENDING", "RUNNING"):
        return None
    if current in ("SUCCEEDED", "STOPPED"):
        return EXIT_DONE if current == "SUCCEEDED" else EXIT_INTERRUPTED
    found = re.search(r"exit code (-?\d+)", message)
    return int(found[1]) if found and int(found[1]) > 0 else EXIT_FAILED


def _queue(item: RayJob) -> str:
    return str((item["metadata"].get("labels") or {}).get(QUEUE_LABEL, ""))
