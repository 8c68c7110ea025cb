"""Pod templates of a Ray cluster under Kubernetes, as plain data: head, workers and submitter."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import cast

from shardyard.launch.schedulers.kuberay.manifests import (
    Container,
    PodSpec,
    PodTemplate,
    Resources,
    Section,
    SecurityContext,
)
from shardyard.launch.schedulers.kuberay.names import PREFIX
from shardyard.launch.schedulers.kuberay.sizes import HEAD_CPUS, STOP_SECONDS, Pods, head_bytes
from shardyard.recipe.schema import Recipe

GPU_RESOURCE = "nvidia.com/gpu"
RUNS_PATH = "/runs"
JOB_FOLDER = "/etc/shardyard"
# The user of the image. A number, because Kubernetes cannot verify from a name that it is not root.
USER_ID = 1000

_MIB = 1024**2


@dataclass(frozen=True)
class PodContext:
    """Common settings of all pods of a cluster.

    name: of the job or cluster; labels: on every pod.
    run_id: the run whose last checkpoint pods wait for before they end; None for a cluster without a run.
    """

    name: str
    recipe: Recipe
    pods: Pods
    labels: dict[str, str]
    run_id: str | None = None


def head_template(context: PodContext) -> PodTemplate:
    """The pod of Ray's head, which also runs the driver; no rank runs on it."""
    container: Container = {
        **_container(context, "ray-head", driver=True),
        "ports": [
            {"name": "gcs-server", "containerPort": 6379},
            {"name": "dashboard", "containerPort": 8265},
            {"name": "client", "containerPort": 10001},
        ],
        "resources": _same({"cpu": str(HEAD_CPUS), "memory": quantity(head_bytes(context.pods))}),
    }
    spec = _pod(context, container, context.pods.object_store_bytes)
    if context.run_id is not None:
        container["volumeMounts"].append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
        spec["volumes"].append({"name": "job", "configMap": {"name": context.name}})
    return {"metadata": {"labels": context.labels}, "spec": spec}


def worker_template(context: PodContext) -> PodTemplate:
    """The pod of a node of workers."""
    settings, pods = context.recipe.cluster.kubernetes, context.pods
    amounts = {"cpu": str(pods.cpus), "memory": quantity(pods.memory_bytes)}
    if pods.gpus:
        amounts[GPU_RESOURCE] = str(pods.gpus)
    rdma = rdma_resource(context)
    if rdma is not None:
        amounts[rdma] = "1"
    container: Container = {**_container(context, "ray-worker"), "resources": _same(amounts)}
    if rdma is not None:
        # RDMA needs locked memory.
        container["securityContext"]["capabilities"]["add"] = ["IPC_LOCK"]
    spec = _pod(context, container, context.pods.shared_bytes)
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if pods.gpus:
        spec["tolerations"] = [{"key": GPU_RESOURCE, "operator": "Exists", "effect": "NoSchedule"}]
    if (affinity := _apart(context)) is not None:
        spec["affinity"] = affinity
    return {"metadata": {"labels": context.labels}, "spec": spec}


def submitter_template(context: PodContext) -> PodTemplate:
    """The pod that submits the job to the cluster and shows its output. It has no secrets and no storage."""
    container: Container = {
        "name": "ray-job-submitter",
        "image": context.recipe.cluster.kubernetes.image,
        "resources": _same({"cpu": "500m", "memory": "512Mi"}),
        "securityContext": _locked_down(),
    }
    # KubeRay requires Never: a restarted submitter would find its job submitted already.
    spec = _pod_spec(context, {"restartPolicy": "Never", "containers": [container]})
    return {"metadata": {"labels": context.labels}, "spec": spec}


def rdma_resource(context: PodContext) -> str | None:
    """The extended resource for the RDMA devices of workers, if any; pods without GPUs do not need it."""
    cluster = context.recipe.cluster
    return cluster.kubernetes.rdma_resource if context.pods.gpus and cluster.network.rdma != "off" else None


def quantity(count: int) -> str:
    """Bytes as Kubernetes writes them, rounded up: 8589934592 → `8Gi`."""
    mebibytes = math.ceil(count / _MIB)
    return f"{mebibytes // 1024}Gi" if mebibytes % 1024 == 0 else f"{mebibytes}Mi"


def _container(context: PodContext, name: str, *, driver: bool = False) -> Container:
    settings = context.recipe.cluster.kubernetes
    environment = {"RAY_USAGE_STATS_ENABLED": "0"}
    if settings.runs_claim:
        # Prepared datasets are on the volume too, prepared once and visible to all pods.
        environment |= {"SHARDYARD_RUNS": RUNS_PATH, "SHARDYARD_CACHE": f"{RUNS_PATH}/.cache"}
    container: Container = {
        "name": name,
        "image": settings.image,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "envFrom": [{"secretRef": {"name": secret}} for secret in settings.secrets],
        "lifecycle": {"preStop": {"exec": {"command": ["/bin/sh", "-c", _farewell(context, driver)]}}},
        "securityContext": _locked_down(),
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],
    }
    if settings.runs_claim:
        container["volumeMounts"].append({"name": "runs", "mountPath": RUNS_PATH})
    if not settings.secrets:
        del container["envFrom"]
    return container


def _pod(context: PodContext, container: Container, shared_bytes: int) -> PodSpec:
    settings = context.recipe.cluster.kubernetes
    memory = {"medium": "Memory", "sizeLimit": quantity(shared_bytes)}
    volumes: list[Section] = [{"name": "shared-memory", "emptyDir": memory}]
    if settings.runs_claim:
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": settings.runs_claim}})
    grace = context.pods.grace_seconds
    return _pod_spec(context, {"terminationGracePeriodSeconds": grace, "containers": [container], "volumes": volumes})


def _pod_spec(context: PodContext, spec: PodSpec) -> PodSpec:
    """The spec of a pod that never runs as root, with no API access beyond its service account's."""
    account = context.recipe.cluster.kubernetes.service_account
    user = {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        # Changing the owner of every file of a large volume takes hours.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    access: Section = {"serviceAccountName": account} if account else {"automountServiceAccountToken": False}
    return cast("PodSpec", {**access, "securityContext": user, **spec})


def _locked_down() -> SecurityContext:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _same(amounts: dict[str, str]) -> Resources:
    """Requests equal limits, so that a node short of memory evicts these pods last."""
    return {"requests": dict(amounts), "limits": dict(amounts)}


def _farewell(context: PodContext, driver: bool) -> str:
    """The preStop hook of a pod: wait for a checkpoint, then stop Ray.

    The shell in which KubeRay starts Ray ignores SIGTERM, so without `ray stop` each pod would keep its GPUs until the
    end of its grace period.
    """
    stop = f"ray stop --grace-period {STOP_SECONDS // 2}"
    if context.run_id is None:
        return stop
    wait = ["python", "-m", "shardyard.launch.schedulers.kuberay.stop", f"{RUNS_PATH}/{context.run_id}"]
    wait += [str(context.pods.checkpoint_seconds), *(["--driver"] if driver else [])]
    return f"{shlex.join(wait)}; {stop}"


def _apart(context: PodContext) -> Section | None:
    """Anti-affinity that keeps pods on separate nodes if the recipe spreads its ranks; else None."""
    placement = context.recipe.cluster.placement
    if placement not in ("spread", "strict_spread"):
        return None
    selector = {"matchLabels": {f"{PREFIX}/job": context.labels[f"{PREFIX}/job"]}}
    term = {"labelSelector": selector, "topologyKey": "kubernetes.io/hostname"}
    if placement == "strict_spread":
        rule: Section = {"requiredDuringSchedulingIgnoredDuringExecution": [term]}
    else:
        rule = {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}
    return {"podAntiAffinity": rule}
