"""Types of the Kubernetes and KubeRay objects that are written or read here; only the fields that are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NotRequired, TypedDict

# A part that is only written; its structure is documented by Kubernetes.
Section = Mapping[str, object]


class OwnerReference(TypedDict):
    """The owner of an object; the object is deleted with it."""

    apiVersion: str
    kind: str
    name: str
    uid: str
    blockOwnerDeletion: bool
    controller: bool


class ObjectMeta(TypedDict):
    """Name, labels and annotations of an object; Kubernetes sets `uid` and `creationTimestamp`."""

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
    """Linux capabilities to add or drop."""

    add: list[str]
    drop: list[str]


class SecurityContext(TypedDict):
    """The privileges of a container."""

    allowPrivilegeEscalation: bool
    capabilities: Capabilities


class Resources(TypedDict):
    """Resource requests and limits of a container."""

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
    """The account of a pod, its containers, and its placement."""

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
    """The template of pods."""

    metadata: TemplateMeta
    spec: PodSpec


class HeadGroup(TypedDict):
    """The head of a Ray cluster."""

    serviceType: str
    rayStartParams: dict[str, str]
    template: PodTemplate


class WorkerGroup(TypedDict):
    """A group of identical workers of a Ray cluster."""

    groupName: str
    replicas: int
    minReplicas: int
    maxReplicas: int
    numOfHosts: int
    rayStartParams: dict[str, str]
    template: PodTemplate


class RayClusterSpec(TypedDict):
    """A Ray cluster. `suspend` prevents its start until Kueue admits it."""

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
    """KubeRay's settings for running a job."""

    entrypoint: str
    submissionMode: str
    submitterConfig: dict[str, int]
    backoffLimit: int
    shutdownAfterJobFinishes: bool
    ttlSecondsAfterFinished: int
    activeDeadlineSeconds: NotRequired[int]
    suspend: NotRequired[bool]


class RayJobSpec(JobSettings):
    """A job and its cluster."""

    submitterPodTemplate: PodTemplate
    rayClusterSpec: RayClusterSpec


class RayJobStatus(TypedDict, total=False):
    """The status of a job: KubeRay's state and Ray's."""

    jobDeploymentStatus: str
    jobStatus: str
    message: str
    reason: str
    startTime: str
    endTime: str
    rayClusterName: str


class RayJob(TypedDict):
    """A job; `status` is present once KubeRay has seen it."""

    apiVersion: str
    kind: str
    metadata: ObjectMeta
    spec: RayJobSpec
    status: NotRequired[RayJobStatus]


class StatusDetails(TypedDict, total=False):
    """The object of a refusal."""

    kind: str
    name: str
    group: str
    causes: Sequence[Mapping[str, str]]


class Status(TypedDict, total=False):
    """A refusal by Kubernetes."""

    kind: str
    message: str
    details: StatusDetails
