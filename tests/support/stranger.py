"""Probing the ports of a cluster without the token. Run as a script on a neighbouring host.

Reads `[[address, port], …]` from the file that it is given, and writes a list with one JSON object a port: answers to
next to nothing, to HTTP requests, and to every method of every gRPC service of Ray that the port knows.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import socket
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import ray.core.generated as generated

TIMEOUT_SECONDS = 5.0
WRONG_TOKEN = "0" * 64
# The test looks for this folder's name among the jobs.
TRACE = "a-stranger-was-here"
SUBMIT = json.dumps({"entrypoint": f"echo {TRACE}"}).encode()
# Requests that read or change something, on the dashboard, its agents and the runtime-environment agents.
HTTP_REQUESTS: tuple[tuple[str, str, bytes | None], ...] = (
    ("GET", "/api/version", None),
    ("GET", "/api/jobs/", None),
    ("POST", "/api/jobs/", SUBMIT),
    ("GET", "/nodes?view=summary", None),
    ("GET", "/api/v0/nodes", None),
    ("GET", "/api/v0/logs", None),
    ("GET", "/api/cluster_status", None),
    ("GET", "/logical/actors", None),
    ("GET", "/api/packages/protocols/gcs/packages/none.zip", None),
    ("PUT", "/api/packages/protocols/gcs/packages/none.zip", b"PK"),
    ("GET", "/metrics", None),
    ("GET", "/api/job_agent/jobs/", None),
    ("POST", "/api/job_agent/jobs/", SUBMIT),
    ("POST", "/get_or_create_runtime_env", b""),
    ("POST", "/get_runtime_envs_info", b""),
    ("POST", "/delete_runtime_env_if_possible", b""),
)

# Services that Ray also answers, but that its Python package does not describe.
WITHOUT_STUBS = {
    "grpc.health.v1.Health": ("Check",),
    "grpc.reflection.v1alpha.ServerReflection": ("ServerReflectionInfo",),
    "opentelemetry.proto.collector.metrics.v1.MetricsService": ("Export",),
    "ray.rpc.ObjectManagerService": ("Push", "Pull"),
}


def services() -> dict[str, list[str]]:
    """Methods of all gRPC services that this Ray defines, by full name of the service."""
    found: dict[str, list[str]] = {service: list(methods) for service, methods in WITHOUT_STUBS.items()}
    for module in pkgutil.iter_modules(generated.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            for service in file.services_by_name.values():
                found[service.full_name] = [method.name for method in service.methods]
    return found


def ask_plainly(address: str, port: int) -> str:
    """The response, in hexadecimal, to a connection that sends almost nothing."""
    try:
        with socket.create_connection((address, port), timeout=TIMEOUT_SECONDS) as connection:
            connection.settimeout(1.0)
            connection.sendall(b"\r\n\r\n")
            return connection.recv(4096).hex()
    except OSError as error:
        return f"nothing: {error}"


def ask_http(address: str, port: int, token: str | None) -> dict[str, Any]:
    """Status of each request; the reason where the port speaks no HTTP."""
    answers: dict[str, Any] = {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for method, path, body in HTTP_REQUESTS:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        request = urllib.request.Request(f"http://{address}:{port}{path}", body, headers, method=method)
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                answers[f"{method} {path}"] = answer.status
        except urllib.error.HTTPError as error:
            answers[f"{method} {path}"] = error.code
        except Exception as error:  # noqa: BLE001  whatever a port that speaks something else makes of it
            return {"no HTTP": f"{type(error).__name__}: {error}"}
    return answers


def ask_grpc(address: str, port: int, token: str | None) -> dict[str, str]:
    """Status code of each method of the services that the port knows."""
    answers: dict[str, str] = {}
    with grpc.insecure_channel(f"{address}:{port}") as channel:
        for service, methods in services().items():
            first = _call(channel, service, methods[0], token)
            if first == "UNAVAILABLE":
                return answers
            if first == "UNIMPLEMENTED":
                continue
            answers[f"{service}/{methods[0]}"] = first
            for method in methods[1:]:
                answers[f"{service}/{method}"] = _call(channel, service, method, token)
    return answers


def _call(channel: grpc.Channel, service: str, method: str, token: str | None) -> str:
    call = channel.unary_unary(f"/{service}/{method}")
    try:
        call(b"", timeout=TIMEOUT_SECONDS, metadata=[("authorization", f"Bearer {token}")] if token else None)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"


def examine(target: tuple[str, int]) -> dict[str, Any]:
    """All responses of one port without the token."""
    address, port = target
    return {
        "address": address,
        "port": port,
        "plain": ask_plainly(address, port),
        "http": ask_http(address, port, None),
        "http with a wrong token": ask_http(address, port, WRONG_TOKEN),
        "grpc": ask_grpc(address, port, None),
        "grpc with a wrong token": ask_grpc(address, port, WRONG_TOKEN),
    }


def main() -> None:
    """Examine the ports that the file names."""
    with open(sys.argv[1], encoding="utf-8") as file:
        targets = [(address, port) for address, port in json.load(file)]
    with ThreadPoolExecutor(8) as pool:
        json.dump(list(pool.map(examine, targets)), sys.stdout)


if __name__ == "__main__":
    main()
