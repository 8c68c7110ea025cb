"""Errors of the Kubernetes API, as one paragraph each."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any, cast

from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.schedulers.base import JobNotFoundError
from shardyard.launch.schedulers.kuberay.manifests import Status, StatusDetails

# Request timeout, and too many requests.
_LATER = (408, 429)
_MISSING = "it is not there"


class RefusedError(UsageError):
    """The server refused with this HTTP status; nothing was changed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class MissingError(RefusedError, JobNotFoundError):
    """The object does not exist."""


class UnreachableError(ShardyardError):
    """The server was not reached; nothing was changed."""


@contextlib.contextmanager
def explained(server: str, what: str) -> Iterator[None]:
    """Errors of the API as one paragraph.

    Raises:
        MissingError: (a JobNotFoundError) the object does not exist.
        RefusedError: (a UsageError) the server refused.
        UnreachableError: the server cannot be reached.
        ShardyardError: unexpected answer; the request may have been carried out.
    """
    from kubernetes.client.exceptions import ApiException
    from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError

    try:
        yield
    except ApiException as error:
        if error.status is None or error.status >= 500 or error.status in _LATER:
            raise ShardyardError(
                f"{what}: the Kubernetes API at {server} failed: {_message(error)}. Try again later."
            ) from error
        why = _why(error, what)
        kind = MissingError if error.status == 404 and why.startswith(_MISSING) else RefusedError
        raise kind(error.status, f"{what}: {why}") from error
    except (HTTPError, OSError) as error:
        unsent = isinstance(getattr(error, "reason", error), (NewConnectionError, ConnectTimeoutError))
        raise (UnreachableError if unsent else ShardyardError)(
            f"the Kubernetes API at {server} cannot be reached: {_cause(error)}. Check that it runs and that "
            "`kubectl get nodes` answers; --address takes the name of another context of the kubeconfig."
        ) from error


def _why(error: Any, what: str) -> str:
    message = _message(error)
    if error.status == 401:
        return "Kubernetes does not accept the credentials of the kubeconfig; log in again and try `kubectl get nodes`."
    if error.status == 403:
        return (
            f"Kubernetes does not allow it: {message}. Request the Role in cluster/kuberay/access.yaml, or use another "
            "namespace (cluster.kubernetes.namespace) or service account."
        )
    if error.status == 404 and (_details(error).get("kind") == "namespaces" or 'namespaces "' in message):
        return f"{message}. Create the namespace, or name another in cluster.kubernetes.namespace."
    if error.status == 404 and _details(error).get("kind") is None and "RayJob" in what:
        return (
            "this cluster has no RayJob of ray.io/v1: KubeRay's operator is not installed, or is older than 1.0. "
            "cluster/kuberay/README.md says how to install it."
        )
    if error.status == 404:
        return f"{_MISSING} ({message}). `kubectl get rayjobs --all-namespaces` lists the jobs."
    if error.status == 409:
        return f"{message}. Give the job another name with --name, or delete the existing one."
    if "unknown field" in message and "authOptions" in message:
        return (
            f"KubeRay here is older than 1.5.1, so its clusters have no tokens ({message}). Update operator and CRDs."
        )
    return f"Kubernetes refuses it: {message}."


def _status(error: Any) -> Status:
    """The message of a Kubernetes `Status`; empty if the answer has another form."""
    try:
        body = json.loads(error.body or "")
    except (TypeError, ValueError):
        return {}
    return cast("Status", body) if isinstance(body, dict) and body.get("kind") == "Status" else {}


def _details(error: Any) -> StatusDetails:
    return _status(error).get("details") or {}


def _message(error: Any) -> str:
    text = _status(error).get("message") or error.reason or f"HTTP {error.status}"
    return " ".join(str(text).split()).rstrip(".")


def _cause(error: BaseException) -> str:
    """The innermost cause, without urllib3's object reprs."""
    cause = getattr(error, "reason", None) or error
    while isinstance(cause, BaseException) and cause.args and isinstance(cause.args[-1], BaseException):
        cause = cause.args[-1]
    text = (str(cause).strip() or type(cause).__name__).splitlines()[0]
    return re.sub(r"^<?\w+\(.*?\)>?: ", "", text).rstrip(".")
