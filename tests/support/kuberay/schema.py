"""JSON schemas of ray.io/v1 of KubeRay 1.5.1; fields that are not listed here are refused.

Pod templates are checked separately, against the models of the Kubernetes client (`models.py`).
"""

from __future__ import annotations

from typing import Any

import jsonschema

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
FLAG: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}
TEMPLATE: Schema = {"type": "object", "required": ["spec"]}


def only(required: list[str], **fields: Schema) -> Schema:
    return {"type": "object", "additionalProperties": False, "required": required, "properties": fields}


NAME: Schema = {"type": "string", "pattern": "^[a-z]([-a-z0-9]*[a-z0-9])?$"}
LABELS: Schema = {
    "type": "object",
    "propertyNames": {"pattern": r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$"},
    "additionalProperties": {"type": "string", "pattern": "^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$"},
}


def metadata(longest: int) -> Schema:
    return only(
        ["name", "namespace"], name={**NAME, "maxLength": longest}, namespace=TEXT, labels=LABELS, annotations=TEXTS
    )


HEAD = only(
    ["template"],
    template=TEMPLATE,
    headService={"type": "object"},
    enableIngress=FLAG,
    rayStartParams=TEXTS,
    serviceType={"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
    labels=TEXTS,
    resources=TEXTS,
)
WORKERS = only(
    ["groupName", "template", "maxReplicas", "minReplicas"],
    groupName=TEXT,
    template=TEMPLATE,
    suspend=FLAG,
    replicas=COUNT,
    minReplicas=COUNT,
    maxReplicas={**COUNT, "minimum": 1},
    idleTimeoutSeconds=COUNT,
    numOfHosts={**COUNT, "minimum": 1},
    rayStartParams=TEXTS,
    scaleStrategy={"type": "object"},
    labels=TEXTS,
    resources=TEXTS,
)
CLUSTER = only(
    ["headGroupSpec"],
    headGroupSpec=HEAD,
    workerGroupSpecs={"type": "array", "items": WORKERS},
    authOptions=only([], mode={"enum": ["disabled", "token"]}),
    suspend=FLAG,
    managedBy={"enum": ["ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue"]},
    autoscalerOptions={"type": "object"},
    headServiceAnnotations=TEXTS,
    enableInTreeAutoscaling=FLAG,
    gcsFaultToleranceOptions={"type": "object"},
    rayVersion=TEXT,
)
JOB = only(
    [],
    activeDeadlineSeconds={**COUNT, "minimum": 1},
    backoffLimit=COUNT,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=TEMPLATE,
    metadata=TEXTS,
    clusterSelector=TEXTS,
    submitterConfig=only([], backoffLimit=COUNT),
    managedBy=TEXT,
    deletionStrategy={"type": "object"},
    entrypoint=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    entrypointResources=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=COUNT,
    shutdownAfterJobFinishes=FLAG,
    suspend=FLAG,
)


def kind(name: str, spec: Schema, longest: int) -> Schema:
    return only(
        ["apiVersion", "kind", "metadata", "spec"],
        apiVersion={"const": "ray.io/v1"},
        kind={"const": name},
        metadata=metadata(longest),
        spec=spec,
    )


KINDS = {
    "RayJob": kind("RayJob", {**JOB, "required": ["entrypoint", "rayClusterSpec"]}, 47),
    "RayCluster": kind("RayCluster", CLUSTER, 50),
}


def schema_problems(manifest: dict[str, Any]) -> list[str]:
    """The problems of a manifest by KubeRay's schema and the additional rules of its operator."""
    validator = jsonschema.Draft202012Validator(KINDS[manifest["kind"]])
    found = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]
    return found or list(_operator_rules(manifest))


def _operator_rules(manifest: dict[str, Any]) -> list[str]:
    """`ValidateRayJobSpec` and `ValidateRayClusterSpec` of the operator, as far as they concern these fields."""
    found, spec = [], manifest["spec"]
    if manifest["kind"] == "RayJob":
        if spec.get("suspend") and not spec.get("shutdownAfterJobFinishes"):
            found.append("a RayJob with shutdownAfterJobFinishes set to false is not allowed to be suspended")
        if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
            found.append("a RayJob with shutdownAfterJobFinishes set to false cannot have TTLSecondsAfterFinished")
        spec = spec["rayClusterSpec"]
    for group in spec.get("workerGroupSpecs", []):
        if not group["minReplicas"] <= group.get("replicas", group["minReplicas"]) <= group["maxReplicas"]:
            found.append(f"{group['groupName']}: replicas lie outside of minReplicas and maxReplicas")
    groups = [spec["headGroupSpec"], *spec.get("workerGroupSpecs", [])]
    found += ["a group has no containers" for group in groups if not group["template"]["spec"].get("containers")]
    return found
