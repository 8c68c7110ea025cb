"""Manifests of KubeRay (`ray.io/v1`) from a recipe and its plan. Pure: contacts neither Kubernetes nor Ray.

Fields are those of KubeRay 1.5.1, the first with Ray's token authentication.
"""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from importlib import metadata

from shardyard.errors import Problem, RecipeError
from shardyard.launch.jobs.entry import GRACE_SECONDS
from shardyard.launch.jobs.spec import SPEC_NAME, limit_seconds
from shardyard.launch.schedulers.kuberay import names
from shardyard.launch.schedulers.kuberay.check import check
from shardyard.launch.schedulers.kuberay.manifests import (
    ConfigMap,
    JobSettings,
    ObjectMeta,
    RayCluster,
    RayClusterSpec,
    RayJob,
)
from shardyard.launch.schedulers.kuberay.pods import (
    JOB_FOLDER,
    PodContext,
    head_template,
    quantity,
    rdma_resource,
    submitter_template,
    worker_template,
)
from shardyard.launch.schedulers.kuberay.sizes import Pods, pods_of
from shardyard.planning.plan import RunPlan
from shardyard.recipe.schema import Recipe
from shardyard.units import format_bytes

API_VERSION = "ray.io/v1"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
MANAGED_LABELS = {"app.kubernetes.io/name": "shardyard", "app.kubernetes.io/managed-by": "shardyard"}
JOB_LABEL = f"{names.PREFIX}/job"
RUN_ANNOTATION = f"{names.PREFIX}/run"

# Pulling an image of some GB on every node, and starting Ray.
START_SECONDS = 1800
# Attempts to reach the cluster's dashboard, not attempts at the run.
SUBMITTER_RETRIES = 2
# The limit of a ConfigMap is 1 MiB, including its metadata.
MAX_JOB_FILE_BYTES = 1_000_000


@dataclass(frozen=True)
class RayJobInputs:
    """The inputs of a RayJob.

    name: of the job, from `names.dns_name`; run_id: of the run folder, which later attempts continue.
    job_file: text of the job file (`jobs.spec.spec_of`), which includes the recipe.
    """

    name: str
    run_id: str
    recipe: Recipe
    plan: RunPlan
    job_file: str


def render_job(spec: RayJobInputs) -> tuple[ConfigMap, RayJob]:
    """A ConfigMap with the job file, and the RayJob that runs it.

    Raises:
        RecipeError: Kubernetes would reject the settings.
    """
    recipe = spec.recipe
    check(recipe, job=True)
    pods = pods_of(recipe, spec.plan)
    context = PodContext(spec.name, recipe, pods, {**MANAGED_LABELS, JOB_LABEL: spec.name}, spec.run_id)
    size = len(spec.job_file.encode())
    if size > MAX_JOB_FILE_BYTES:
        raise _refuse("", f"the file of the job has {format_bytes(size)}; a ConfigMap holds 1 MiB")
    config_map: ConfigMap = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(context, queued=False),
        "data": {SPEC_NAME: spec.job_file},
    }
    job: RayJob = {
        "apiVersion": API_VERSION,
        "kind": "RayJob",
        "metadata": _metadata(context, queued=True),
        "spec": {
            **_job_settings(spec, pods),
            "submitterPodTemplate": submitter_template(context),
            "rayClusterSpec": cluster_spec(context),
        },
    }
    return config_map, job


def render_cluster(name: str, recipe: Recipe, plan: RunPlan) -> RayCluster:
    """A RayCluster of the size that `recipe` needs, for interactive use; it runs until it is deleted.

    Raises:
        RecipeError: Kubernetes would reject the settings.
    """
    check(recipe, job=False)
    context = PodContext(name, recipe, pods_of(recipe, plan), {**MANAGED_LABELS, JOB_LABEL: name})
    spec = cluster_spec(context)
    if recipe.cluster.kubernetes.queue is not None:
        spec = {"suspend": True, **spec}
    return {"apiVersion": API_VERSION, "kind": "RayCluster", "metadata": _metadata(context, queued=True), "spec": spec}


def cluster_spec(context: PodContext) -> RayClusterSpec:
    """The spec of a Ray cluster: a head on which no rank runs, and one group of identical workers."""
    pods = context.pods
    store = {"object-store-memory": str(pods.object_store_bytes)}
    return {
        "rayVersion": metadata.version("ray"),
        # KubeRay creates the token, stores it in a secret and mounts it in all pods of the cluster.
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": False,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", **store},
            "template": head_template(context),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": pods.count,
                "minReplicas": pods.count,
                "maxReplicas": pods.count,
                "numOfHosts": 1,
                "rayStartParams": {"num-cpus": str(pods.cpus), "num-gpus": str(pods.gpus), **store},
                "template": worker_template(context),
            }
        ],
    }


def _job_settings(spec: RayJobInputs, pods: Pods) -> JobSettings:
    job, kubernetes = spec.recipe.job, spec.recipe.cluster.kubernetes
    settings: JobSettings = {
        "entrypoint": shlex.join(
            ["python", "-m", "shardyard.launch.schedulers.kuberay.entry", f"{JOB_FOLDER}/{SPEC_NAME}"]
        ),
        "submissionMode": "K8sJobMode",
        "submitterConfig": {"backoffLimit": SUBMITTER_RETRIES},
        "backoffLimit": retries_of(spec.recipe),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": kubernetes.ttl_seconds,
    }
    if job.time_limit is not None:
        # The run itself ends each attempt in time, with a checkpoint; this limit ends one that hangs.
        attempts = math.ceil(limit_seconds(job.time_limit) + GRACE_SECONDS) * (job.retries + 1)
        settings["activeDeadlineSeconds"] = START_SECONDS + attempts
    if kubernetes.queue is not None:
        # Kueue sets it to false once quota is free; without Kueue the job waits instead of exceeding its quota.
        settings["suspend"] = True
    return settings


def retries_of(recipe: Recipe) -> int:
    """The number of clusters that KubeRay creates for a job after its first one is lost.

    After a failed or timed-out attempt the driver itself continues on the same cluster (`jobs.policy.decide`).
    """
    return recipe.job.retries if recipe.job.on_preempted == "resume" else 0


def _metadata(context: PodContext, *, queued: bool) -> ObjectMeta:
    recipe, settings = context.recipe, context.recipe.cluster.kubernetes
    labels = {
        **context.labels,
        f"{names.PREFIX}/recipe": names.label_value(recipe.name),
        **names.tag_labels(recipe.tracking.tags),
    }
    if queued and settings.queue is not None:
        labels[QUEUE_LABEL] = settings.queue
        if recipe.job.priority is not None:
            labels[PRIORITY_LABEL] = recipe.job.priority
    annotations = {f"{names.PREFIX}/recipe": recipe.name}
    if recipe.tracking.tags:
        annotations[f"{names.PREFIX}/tags"] = ", ".join(recipe.tracking.tags)
    if context.run_id is not None:
        annotations[RUN_ANNOTATION] = context.run_id
    return {"name": context.name, "namespace": settings.namespace, "labels": labels, "annotations": annotations}


def describe(recipe: Recipe, plan: RunPlan) -> list[str]:
    """A summary of pods, their sizes and reasons."""
    pods = pods_of(recipe, plan)
    context = PodContext("", recipe, pods, {JOB_LABEL: ""})
    rdma = rdma_resource(context)
    devices = [f"{pods.cpus} CPU core(s)", *([f"{pods.gpus} GPU(s)"] if pods.gpus else []), *([rdma] if rdma else [])]
    return [
        f"{pods.count} worker pod(s): {pods.reasons['pods']}",
        f"each with {', '.join(devices)} and {quantity(pods.memory_bytes)} of memory: {pods.reasons['memory']}",
        f"a pod that is to go may take {pods.checkpoint_seconds} s for a last checkpoint",
    ]


def _refuse(path: str, message: str) -> RecipeError:
    return RecipeError("kuberay", [Problem("", path, message)])
