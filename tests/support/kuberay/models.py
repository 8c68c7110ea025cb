"""Checks plain data against the models of the Kubernetes client: unknown fields, types, and a few rules of the API."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from kubernetes import client

_QUANTITY = re.compile(r"\d+(\.\d+)?(m|Ki|Mi|Gi|Ti|k|M|G|T)?")
_PLAIN = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def model_problems(data: Any, model: str, path: str = "") -> Iterator[str]:
    """The problems of `data` as a `model`, such as V1PodTemplateSpec."""
    if not isinstance(data, dict):
        yield f"{path}: {data!r} is no {model}"
        return
    of_model = getattr(client, model)
    types = {key: of_model.openapi_types[name] for name, key in of_model.attribute_map.items()}
    for key, value in data.items():
        where = f"{path}.{key}".lstrip(".")
        if key not in types:
            yield f"{where}: {model} has no such field"
        else:
            yield from _value_problems(value, types[key], where)
    if model == "V1Container":
        yield from _container_problems(data, path)


def _value_problems(value: Any, of_type: str, path: str) -> Iterator[str]:
    if of_type in _PLAIN:
        if not isinstance(value, _PLAIN[of_type]) or (of_type == "int" and isinstance(value, bool)):  # type: ignore[arg-type]
            yield f"{path}: {value!r} is no {of_type}"
    elif found := re.fullmatch(r"[Ll]ist\[(.+)\]", of_type):
        for index, item in enumerate(value):
            yield from _value_problems(item, found[1], f"{path}[{index}]")
    elif found := re.fullmatch(r"[Dd]ict\[str, (.+)\]", of_type):
        for key, item in value.items():
            yield from _value_problems(item, found[1], f"{path}.{key}")
    elif hasattr(client, of_type):
        yield from model_problems(value, of_type, path)
    elif of_type != "object":
        yield f"{path}: {of_type} is not known"


def _container_problems(data: dict[str, Any], path: str) -> Iterator[str]:
    resources = data.get("resources", {})
    for kind in ("requests", "limits"):
        for name, amount in resources.get(kind, {}).items():
            if not _QUANTITY.fullmatch(amount):
                yield f"{path}.resources.{kind}.{name}: {amount!r} is no quantity"
            # Extended resources are integers, and cannot be overcommitted.
            if "/" in name and resources.get("requests", {}).get(name) != resources.get("limits", {}).get(name):
                yield f"{path}.resources: requests and limits of {name} differ"


def mount_problems(pod: dict[str, Any]) -> Iterator[str]:
    """Mounts without a volume, and volumes that are not mounted."""
    volumes = {volume["name"] for volume in pod.get("volumes", [])}
    mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", [])}
    yield from (f"the volume {name} is not there" for name in mounts - volumes)
    yield from (f"the volume {name} is not mounted" for name in volumes - mounts)
