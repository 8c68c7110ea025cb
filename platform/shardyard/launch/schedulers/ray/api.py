"""Ray's Jobs API and state API over HTTP, as far as jobs need them, with errors as paragraphs.

`ray.job_submission` uses the same protocol, but importing it takes a second, and `ps` should be fast. The protocol is
Ray's documented REST API; a cluster with another version of Ray is refused.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypedDict

from shardyard.errors import ShardyardError, UsageError
from shardyard.launch.local_cluster.network import knock
from shardyard.launch.local_cluster.nodes import ClusterRecord, read_record
from shardyard.launch.local_cluster.token import check_token, mend_ray_token, ray_token_path
from shardyard.launch.schedulers.base import ENDED, JobNotFoundError

TIMEOUT_SECONDS = 30.0
UPLOAD_TIMEOUT_SECONDS = 600.0
TERMINAL = ENDED
# The head's answer while its job agent is not up yet, after waiting some seconds for it.
_NO_AGENT = "No available agent"
_AGENT_SECONDS = 60.0
_UNAUTHORIZED = (401, 403)


class RayJob(TypedDict, total=False):
    """A job in Ray's Jobs API; times in milliseconds since 1970."""

    submission_id: str
    type: str
    status: str
    message: str | None
    metadata: dict[str, str] | None
    start_time: int | None
    end_time: int | None
    driver_exit_code: int | None


class RayNode(TypedDict, total=False):
    """A node in Ray's state API. resources_total: counts, and sizes as numbers or texts such as 4.000 GiB."""

    node_id: str
    node_ip: str
    node_name: str
    is_head_node: bool
    state: str
    state_message: str | None
    end_time_ms: int | None
    labels: dict[str, str] | None
    resources_total: dict[str, float | str]


class RuntimeEnv(TypedDict):
    """The working directory of a job, and its environment variables."""

    working_dir: str
    env_vars: dict[str, str]


class RayJobBody(TypedDict):
    """The request body for submitting a job to the Jobs API."""

    entrypoint: str
    submission_id: str
    metadata: dict[str, str]
    runtime_env: RuntimeEnv


@dataclass(frozen=True)
class Target:
    """A cluster: the URL of its dashboard, and its token, if any."""

    url: str
    token: str | None
    record: ClusterRecord | None = None


def is_named() -> bool:
    """Whether the environment names a cluster, or one was started on this machine."""
    given = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    if given not in (None, "", "auto", "local"):
        return True
    record = read_record()
    return record is not None and record.dashboard is not None


def target(address: str | None) -> Target:
    """The selected cluster: `address`, RAY_API_SERVER_ADDRESS, RAY_ADDRESS, or the one started on this machine.

    Raises:
        UsageError: none is named, or the address is invalid.
        ShardyardError: RAY_ADDRESS names a cluster that does not answer.
    """
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    record = read_record()
    if given in (None, "", "auto", "local"):
        if record is None or record.dashboard is None:
            raise UsageError(
                "no Ray cluster is named: give --address http://HEAD:8265 or set RAY_API_SERVER_ADDRESS, or start one "
                "here with `shardyard cluster up`."
            )
        return Target(record.dashboard, _token(record), record)
    assert given is not None
    if record is not None and record.dashboard is not None and given.rstrip("/") in (record.dashboard, record.gcs):
        return Target(record.dashboard, _token(record), record)
    if "://" not in given:
        given = _dashboard_of(given)
    if urllib.parse.urlsplit(given).scheme not in ("http", "https"):
        raise UsageError(f"{given} is not an address of Ray's Jobs API, such as http://HEAD:8265.")
    return Target(given.rstrip("/"), _token(None))


def _dashboard_of(gcs: str) -> str:
    """URL of the Jobs API of the cluster whose head listens at `host:port`, as RAY_ADDRESS has it."""
    host, _, port = gcs.rpartition(":")
    if not host or not port.isdecimal():
        raise UsageError(f"{gcs} is not the address of a Ray cluster, such as http://HEAD:8265 or HEAD:6379.")
    if (problem := knock(host, int(port))) is not None:
        raise ShardyardError(
            f"the Ray cluster at {gcs} does not answer: {problem}. Check the address that `ray start --head` printed."
        )
    from ray.dashboard.utils import ray_address_to_api_server_url

    try:
        return str(ray_address_to_api_server_url(gcs))
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ShardyardError(
            f"the Ray cluster at {gcs} does not tell the address of its Jobs API: {first}. Give it: --address "
            "http://HEAD:8265."
        ) from error


def _token(record: ClusterRecord | None) -> str | None:
    """The token, as Ray looks it up: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH, the started cluster's, ~/.ray/auth_token."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token.strip()
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        check_token(Path(path).expanduser())
        return Path(path).expanduser().read_text(encoding="utf-8").strip()
    places = [Path(record.token_path)] if record is not None else []
    for place in [*places, ray_token_path()]:
        try:
            if place == ray_token_path():
                mend_ray_token()
            return place.read_text(encoding="utf-8").strip()
        except OSError:
            continue
    return None


class JobsApi:
    """A cluster's Jobs API."""

    def __init__(self, cluster: Target) -> None:
        self.cluster = cluster
        # A proxy would not reach the cluster.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def check_version(self) -> None:
        """Check that the cluster answers, accepts the token, and runs the installed version of Ray.

        Raises:
            ShardyardError: it does not.
        """
        there, here = self.get("/api/version").get("ray_version"), version("ray")
        if there != here:
            raise ShardyardError(
                f"the cluster at {self.cluster.url} runs Ray {there}, here is Ray {here}; install the same version, "
                f"for instance `pip install 'ray[default,tune]=={there}'`."
            )

    def jobs(self) -> list[RayJob]:
        """All submitted jobs, of Shardyard and others, oldest first."""
        listed: list[RayJob] = self.get("/api/jobs/")
        found = [job for job in listed if job.get("type") == "SUBMISSION"]
        return sorted(found, key=lambda job: (job.get("start_time") or 0, job.get("submission_id") or ""))

    def job(self, submission_id: str) -> RayJob:
        """One job.

        Raises:
            JobNotFoundError: the cluster has no such job.
            ShardyardError: it does not answer.
        """
        try:
            found: RayJob = self.get(f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}")
        except ShardyardError as error:
            if getattr(error.__cause__, "code", None) == 404:
                raise JobNotFoundError(f"there is no job {submission_id!r} at {self.cluster.url}.") from error
            raise
        return found

    def logs(self, submission_id: str) -> str:
        """The job's output so far; "" before it starts."""
        return str(self.get(f"/api/jobs/{urllib.parse.quote(submission_id)}/logs").get("logs") or "")

    def submit(self, body: RayJobBody) -> str:
        """Submit a job; returns its id. A head that has just started gets time to start its job agent."""
        deadline = time.monotonic() + _AGENT_SECONDS
        while True:
            try:
                return str(self._json("POST", "/api/jobs/", json.dumps(body).encode())["submission_id"])
            except ShardyardError as error:
                if _NO_AGENT not in str(error):
                    raise
                if time.monotonic() > deadline:
                    raise ShardyardError(
                        f"the cluster at {self.cluster.url} runs, but the agent on its head that starts jobs does not; "
                        "dashboard_agent.log in the logs of Ray's session there tells why. Often another Ray on that "
                        "host uses its port: start the head with another --dashboard-agent-listen-port."
                    ) from error
            time.sleep(1.0)

    def stop(self, submission_id: str) -> bool:
        """Stop a job; False if it had already ended."""
        return bool(self._json("POST", f"/api/jobs/{urllib.parse.quote(submission_id)}/stop", b"")["stopped"])

    def nodes(self, *, alive: bool = True) -> list[RayNode]:
        """Nodes with `node_id`, `node_ip`, `state`, `labels` and `resources_total`; by default only living ones."""
        query = urllib.parse.urlencode({"detail": "1", "limit": 10000})
        wanted = "&filter_keys=state&filter_predicates=%3D&filter_values=ALIVE" if alive else ""
        found = self.get(f"/api/v0/nodes?{query}{wanted}")
        return list(found["data"]["result"]["result"])

    def has_package(self, name: str) -> bool:
        """Whether a package is already uploaded; Ray keeps it for ten minutes, even if no job uses it."""
        try:
            self._request("GET", f"/api/packages/gcs/{name}", None).close()
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise self._explained(error) from error
        except OSError as error:
            raise self._unreachable(error) from error
        return True

    def upload(self, name: str, content: bytes) -> None:
        """Upload a package, replacing one of the same name."""
        self._bytes("PUT", f"/api/packages/gcs/{name}", content, UPLOAD_TIMEOUT_SECONDS)

    def get(self, path: str) -> Any:
        """The JSON answer of a path.

        Raises:
            ShardyardError: the cluster does not answer, refuses, or sends something else.
        """
        return self._json("GET", path, None)

    def _json(self, method: str, path: str, body: bytes | None) -> Any:
        content = self._bytes(method, path, body, TIMEOUT_SECONDS)
        try:
            return json.loads(content)
        except ValueError as error:
            raise ShardyardError(
                f"{self.cluster.url} answers, but is not Ray's Jobs API; give the address of the dashboard, "
                "http://HEAD:8265."
            ) from error

    def _bytes(self, method: str, path: str, body: bytes | None, timeout: float) -> bytes:
        try:
            with self._request(method, path, body, timeout) as answer:
                return bytes(answer.read())
        except urllib.error.HTTPError as error:
            raise self._explained(error) from error
        except (OSError, ValueError) as error:
            raise self._unreachable(error) from error

    def _request(self, method: str, path: str, body: bytes | None, timeout: float = TIMEOUT_SECONDS) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.cluster.token:
            headers["Authorization"] = f"Bearer {self.cluster.token}"
        request = urllib.request.Request(f"{self.cluster.url}{path}", data=body, headers=headers, method=method)
        return self._opener.open(request, timeout=timeout)

    def _explained(self, error: urllib.error.HTTPError) -> ShardyardError:
        if error.code in _UNAUTHORIZED:
            what = "requires a token" if error.code == 401 else "rejects this token"
            return ShardyardError(
                f"the cluster at {self.cluster.url} {what}: set RAY_AUTH_TOKEN_PATH to a file with it; `shardyard "
                "cluster token` on the head prints its path."
            )
        lines = error.read().decode("utf-8", errors="replace").strip().splitlines() or [error.reason]
        return ShardyardError(f"the cluster at {self.cluster.url} refuses: {lines[-1]}")

    def _unreachable(self, error: Exception) -> ShardyardError:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        reason = getattr(reason, "strerror", None) or reason
        return ShardyardError(
            f"the cluster at {self.cluster.url} does not answer: {reason}. Check the address and that the cluster runs "
            "(`shardyard cluster status`); from another network, forward its port, `ssh -L 8265:localhost:8265 HEAD`."
        )
