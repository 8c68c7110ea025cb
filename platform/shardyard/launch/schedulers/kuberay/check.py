"""Checks for settings that Kubernetes would refuse or never run, before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator

from shardyard.errors import Problem, RecipeError
from shardyard.launch.schedulers.kuberay import names
from shardyard.recipe.schema import Recipe

_SECTION = "cluster.kubernetes"


def check(recipe: Recipe, *, job: bool) -> None:
    """Refuse a recipe whose manifests would not work; `job` says whether it is for a RayJob or a bare RayCluster.

    Raises:
        RecipeError: with every problem found.
    """
    found = [*_names(recipe), *_labels(recipe), *(_of_a_job(recipe) if job else ())]
    if found:
        raise RecipeError(recipe.name, [Problem("", path, message) for path, message in found])


def _names(recipe: Recipe) -> Iterator[tuple[str, str]]:
    settings = recipe.cluster.kubernetes
    if not names.is_namespace(settings.namespace):
        yield (
            f"{_SECTION}.namespace",
            f"{settings.namespace!r} is not a valid namespace: use lower-case letters, digits and '-', at most 63",
        )
    named = [("service_account", settings.service_account), ("runs_claim", settings.runs_claim)]
    for field, name in [*named, *(("secrets", secret) for secret in settings.secrets)]:
        if name is not None and not names.is_subdomain(name):
            yield (
                f"{_SECTION}.{field}",
                f"{name!r} is not a valid name of a Kubernetes object: use lower-case letters, digits, '-' and '.'",
            )
    resource = settings.rdma_resource
    if resource is not None and not names.is_resource_name(resource):
        yield f"{_SECTION}.rdma_resource", f"{resource!r} is not an extended resource; write it like rdma/hca"


def _labels(recipe: Recipe) -> Iterator[tuple[str, str]]:
    settings = recipe.cluster.kubernetes
    for path, value in ((f"{_SECTION}.queue", settings.queue), ("job.priority", recipe.job.priority)):
        if value is not None and not (value and names.is_label_value(value)):
            yield path, f"{value!r} is not a valid label value: use letters, digits, '-', '_' and '.', at most 63"
    for key, value in settings.node_selector.items():
        if not (names.is_label_key(key) and names.is_label_value(value)):
            yield f"{_SECTION}.node_selector", f"{key}: {value} is not a valid node label"


def _of_a_job(recipe: Recipe) -> Iterator[tuple[str, str]]:
    settings = recipe.cluster.kubernetes
    if settings.runs_claim is None:
        yield (
            f"{_SECTION}.runs_claim",
            "a job needs a persistent volume claim (ReadWriteMany) for its run folder: driver and workers write it",
        )
    if recipe.job.priority is not None and settings.queue is None:
        yield (
            "job.priority",
            "on Kubernetes priorities need Kueue; name its local queue in cluster.kubernetes.queue, or remove this",
        )
