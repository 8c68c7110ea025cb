"""The Kubernetes API as far as jobs need it, with its errors as paragraphs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardyard.errors import HardwareError, ShardyardError, UsageError
from shardyard.extras import install_command
from shardyard.launch.schedulers.kuberay.errors import RefusedError, UnreachableError, explained
from shardyard.launch.schedulers.kuberay.manifests import ConfigMap, OwnerReference, RayJob

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

RAY_GROUP, RAY_VERSION, RAY_JOBS = "ray.io", "v1", "rayjobs"
KUEUE_GROUP, KUEUE_VERSION, KUEUE_WORKLOADS = "kueue.x-k8s.io", "v1beta1", "workloads"
# Timeouts in seconds: to connect, and to read the answer.
TIMEOUTS = (5, 30)
# A driver may be silent for a long time.
FOLLOW_TIMEOUTS = (5, 7 * 86400)
IN_A_POD = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")
LISTED_AT_ONCE = 500
HTTP_NOT_FOUND = 404


@dataclass(frozen=True)
class KubeApi:
    """A connection to a Kubernetes cluster. It is cheap: nothing is sent before the first request."""

    server: str
    core: Any  # CoreV1Api
    custom: Any  # CustomObjectsApi


def connect(context: str | None = None) -> KubeApi:
    """The cluster of a context of the kubeconfig (by default the current one) or, in a pod, its own cluster.

    Raises:
        HardwareError: the package kubernetes is not installed.
        UsageError: there is no usable kubeconfig.
    """
    try:
        from kubernetes import client
    except ImportError as error:
        raise HardwareError(
            f"the Kubernetes API needs the package kubernetes: `{install_command('kubernetes')}`. Without it, "
            "--dry-run FILE writes the manifests for `kubectl create -f FILE`."
        ) from error
    api = _client(context)
    return KubeApi(str(api.configuration.host), client.CoreV1Api(api), client.CustomObjectsApi(api))


def _client(context: str | None) -> ApiClient:
    from kubernetes import client, config

    settings = client.Configuration()
    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    try:
        if context is None and not _any_exists(files) and IN_A_POD.is_file():
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        else:
            config.load_kube_config(files, context=context, client_configuration=settings)  # type: ignore[no-untyped-call]
    except Exception as error:  # a kubeconfig can be wrong in any way
        raise UsageError(
            f"no Kubernetes cluster can be used from here: {_one_line(error)}. `kubectl config get-contexts` lists "
            "those that the kubeconfig (KUBECONFIG, ~/.kube/config) knows; --address takes the name of one."
        ) from error
    settings.retries = 1
    return client.ApiClient(settings)


def create_job(api: KubeApi, job: RayJob, config_map: ConfigMap) -> str:
    """Create a RayJob and the ConfigMap that it owns, so that they are deleted together; returns the job's uid.

    An error, including Ctrl-C, undoes the creation.

    Raises:
        ShardyardError, UsageError: the cluster rejects them.
    """
    try:
        uid = _create(api, job)
    except (RefusedError, UnreachableError):
        raise
    except BaseException as error:
        _take_back(api, job, error)
        raise
    try:
        _create_config_map(api, _owned(config_map, job, uid))
    except BaseException as error:
        _take_back(api, job, error)
        raise
    return uid


def _create(api: KubeApi, job: RayJob) -> str:
    namespace, name = _place(job)
    with explained(api.server, f"the RayJob {namespace}/{name}"):
        # Strict: a field that the CRD does not know is refused instead of dropped.
        created = api.custom.create_namespaced_custom_object(
            RAY_GROUP, RAY_VERSION, namespace, RAY_JOBS, dict(job), field_validation="Strict", _request_timeout=TIMEOUTS
        )
    return str(created["metadata"]["uid"])


def _create_config_map(api: KubeApi, config_map: ConfigMap) -> None:
    namespace, name = _place(config_map)
    with explained(api.server, f"the ConfigMap {namespace}/{name}"):
        api.core.create_namespaced_config_map(
            namespace, config_map, field_validation="Strict", _request_timeout=TIMEOUTS
        )


def _place(item: RayJob | ConfigMap) -> tuple[str, str]:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def _owned(config_map: ConfigMap, job: RayJob, uid: str) -> ConfigMap:
    owner: OwnerReference = {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "name": job["metadata"]["name"],
        "uid": uid,
        "blockOwnerDeletion": False,
        "controller": False,
    }
    return {**config_map, "metadata": {**config_map["metadata"], "ownerReferences": [owner]}}


def _take_back(api: KubeApi, job: RayJob, error: BaseException) -> None:
    """Delete a job that may have been created, if it is this one and not another of the same name.

    Raises:
        ShardyardError: that failed; the message includes `error`.
    """
    namespace, name = _place(job)
    try:
        found = get_job(api, namespace, name)
        if job["metadata"]["annotations"].items() <= (found["metadata"].get("annotations") or {}).items():
            delete_job(api, namespace, name)
    except ShardyardError as another:
        if isinstance(another, RefusedError) and another.status == HTTP_NOT_FOUND:
            return
        raise ShardyardError(
            f"{str(error) or 'interrupted'} The RayJob may exist nevertheless and could not be deleted: {another} "
            f"`kubectl delete rayjob --namespace {namespace} {name}` removes it."
        ) from error


def get_job(api: KubeApi, namespace: str, name: str) -> RayJob:
    """A RayJob.

    Raises:
        ShardyardError, UsageError: it does not exist, or may not be read.
    """
    with explained(api.server, f"the RayJob {namespace}/{name}"):
        found: RayJob = api.custom.get_namespaced_custom_object(
            RAY_GROUP, RAY_VERSION, namespace, RAY_JOBS, name, _request_timeout=TIMEOUTS
        )
    return found


def list_jobs(api: KubeApi, namespace: str, selector: str) -> list[RayJob]:
    """The RayJobs of a namespace with these labels.

    Raises:
        ShardyardError, UsageError: they may not be read, or KubeRay is not installed.
    """
    found: list[RayJob] = []
    more = None
    with explained(api.server, f"the RayJobs of the namespace {namespace}"):
        while True:
            page: Any = api.custom.list_namespaced_custom_object(
                RAY_GROUP,
                RAY_VERSION,
                namespace,
                RAY_JOBS,
                label_selector=selector,
                limit=LISTED_AT_ONCE,
                _request_timeout=TIMEOUTS,
                **({"_continue": more} if more else {}),
            )
            found += page["items"]
            more = page.get("metadata", {}).get("continue")
            if not more:
                return found


def delete_job(api: KubeApi, namespace: str, name: str) -> None:
    """Delete a RayJob, and with it its cluster and its ConfigMap.

    Raises:
        ShardyardError, UsageError: it does not exist, or may not be deleted.
    """
    with explained(api.server, f"the RayJob {namespace}/{name}"):
        api.custom.delete_namespaced_custom_object(
            RAY_GROUP,
            RAY_VERSION,
            namespace,
            RAY_JOBS,
            name,
            propagation_policy="Background",
            _request_timeout=TIMEOUTS,
        )


def queue_message(api: KubeApi, namespace: str, uid: str) -> str | None:
    """Why Kueue does not admit the job with this uid yet, in Kueue's words; None if unknown."""
    with contextlib.suppress(Exception):
        found: Any = api.custom.list_namespaced_custom_object(
            KUEUE_GROUP,
            KUEUE_VERSION,
            namespace,
            KUEUE_WORKLOADS,
            label_selector=f"kueue.x-k8s.io/job-uid={uid}",
            _request_timeout=TIMEOUTS,
        )
        for workload in found["items"]:
            for condition in workload.get("status", {}).get("conditions", []):
                if condition["type"] == "QuotaReserved" and condition["status"] == "False":
                    return str(condition["message"])
    return None


def newest_pod(api: KubeApi, namespace: str, job: str) -> Any:
    """The newest submitter pod of a job, whose output is the driver's; None if there is none."""
    with explained(api.server, f"the pods of {namespace}/{job}"):
        pods = api.core.list_namespaced_pod(
            namespace, label_selector=f"job-name={job}", _request_timeout=TIMEOUTS
        ).items
    return max(pods, key=lambda pod: pod.metadata.creation_timestamp, default=None)


def pod_log(api: KubeApi, namespace: str, pod: str, *, follow: bool, lines: int | None = None) -> Iterator[str]:
    """Lines of a pod's output, without line ends, from its last `lines`; with `follow` until the pod ends."""
    with explained(api.server, f"the log of {namespace}/{pod}"):
        response = api.core.read_namespaced_pod_log(
            pod,
            namespace,
            follow=follow,
            tail_lines=lines,
            _preload_content=False,
            _request_timeout=FOLLOW_TIMEOUTS if follow else TIMEOUTS,
        )
        rest = b""
        try:
            for chunk in response.stream(decode_content=True):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode(errors="replace") for line in whole)
            if rest:
                yield rest.decode(errors="replace")
        finally:
            response.release_conn()


def is_configured() -> bool:
    """Whether this host has a kubeconfig, or is a pod, and has the package kubernetes."""
    files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    return (_any_exists(files) or IN_A_POD.is_file()) and find_spec("kubernetes") is not None


def _any_exists(files: str) -> bool:
    return any(Path(file).expanduser().is_file() for file in files.split(os.pathsep) if file)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
