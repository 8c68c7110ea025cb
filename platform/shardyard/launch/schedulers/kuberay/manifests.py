"""Shapes of the objects of Kubernetes and KubeRay that are written or read here, as far as they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

# A part that is only written, whose shape is that of Kubernetes' own documentation.
Section = Mapping[str, object]


class OwnerReference(TypedDict):
    """The object that another one goes with."""

    apiVersion: str
    kind: str
    name: str
    uid: str
    blockOwnerDeletion: bool
    controller: bool


class ObjectMeta(TypedDict):
    """Name, labels and annotations of an object; `uid` and `creationTimestamp` are Kubernetes' own."""

    name: str
    namespace: str
    labels: NotRequired[dict[str, str]]
    annotations: NotRequired[dict[str, str]]
    ownerReferences: NotRequired[list[OwnerReference]]
    uid: NotRequired[str]
    creationTimestamp: NotRequired[str]


class ConfigMap(TypedDict):
    """Files by name."""

    apiVersion: str
    kind: str
    metadata: ObjectMeta
    data: dict[str, str]


class Capabilities(TypedDict, total=False):
    """What a process may do beside, or not."""

    add: list[str]
    drop: list[str]


class SecurityContext(TypedDict):
    """What a container may do."""

    allowPrivilegeEscalation: bool
    capabilities: Capabilities


class Resources(TypedDict):
    """What a container asks for, and what it gets at most."""

    requests: dict[str, str]
    limits: dict[str, str]


class Container(TypedDict):
    """A container of a pod."""

    name: str
    image: str
    env: NotRequired[list[Section]]
    envFrom: NotRequired[list[Section]]
    lifecycle: NotRequired[Section]
    securityContext: SecurityContext
    volumeMounts: NotRequired[list[Section]]
    ports: NotRequired[list[Section]]
    resources: NotRequired[Resources]


class PodSpec(TypedDict):
    """Who a pod is, its containers, and where it may run."""

    serviceAccountName: NotRequired[str]
    automountServiceAccountToken: NotRequired[bool]
    securityContext: NotRequired[Section]
    terminationGracePeriodSeconds: NotRequired[int]
    restartPolicy: NotRequired[str]
    containers: list[Container]
    volumes: NotRequired[list[Section]]
    nodeSelector: NotRequired[dict[str, str]]
    tolerations: NotRequired[list[Section]]
    affinity: NotRequired[Section]


class TemplateMeta(TypedDict):
    """Labels of the pods of a template."""

    labels: dict[str, str]


class PodTemplate(TypedDict):
    """From which pods are made."""

    metadata: TemplateMeta
    spec: PodSpec


class HeadGroup(TypedDict):
    """The head of a Ray cluster."""

    serviceType: str
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(TypedDict):
    """Equal workers of a Ray cluster."""

    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int
    numOfHosts: int
    rayStartParams: dict[str, str]
    template: PodTemplate


class RayClusterSpec(TypedDict):
    """A Ray cluster. `suspend` keeps it from starting, until Kueue lets it."""

    suspend: NotRequired[bool]
    rayVersion: str
    authOptions: dict[str, str]
    enableInTreeAutoscaling: bool
    headGroupSpec: HeadGroup
    workerGroupSpecs: list[WorkerGroup]


class RayCluster(TypedDict):
    """A Ray cluster for interactive use."""

    apiVersion: str
    kind: str
    metadata: ObjectMeta
    spec: RayClusterSpec


class JobSettings(TypedDict):
    """How KubeRay carries out a job."""

    entrypoint: str
    submissionMode: str
    submitterConfig: dict[str, int]
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    activeDeadlineSeconds: NotRequired[int]
    suspend: NotRequired[bool]


class RayJobSpec(JobSettings):
    """A job and the cluster that it brings."""

    submitterPodTemplate: PodTemplate
    rayClusterSpec: RayClusterSpec


class RayJobStatus(TypedDict, total=False):
    """What KubeRay says of a job: its own state of it, and Ray's."""

    jobDeploymentStatus: str
    jobStatus: str
    message: str
    reason: str
    startTime: str
    endTime: str
    rayClusterName: str


class RayJob(TypedDict):
    """A job; `status` once KubeRay has seen it."""

    apiVersion: str
    kind: str
    metadata: ObjectMeta
    spec: RayJobSpec
    status: NotRequired[RayJobStatus]


class StatusDetails(TypedDict, total=False):
    """What a refusal is about."""

    kind: str
    name: str
    group: str
    causes: Sequence[Mapping[str, str]]


class Status(TypedDict, total=False):
    """A refusal of Kubernetes."""

    kind: str
    message: str
    details: StatusDetails
