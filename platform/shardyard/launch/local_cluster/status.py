"""The status of a running cluster: its nodes, free resources and jobs."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from shardyard.errors import ShardyardError
from shardyard.launch.local_cluster import processes
from shardyard.launch.local_cluster.network import knock
from shardyard.launch.local_cluster.nodes import ClusterRecord
from shardyard.launch.local_cluster.plan import NAME_LABEL, START_LABEL, split_address

HTTP_TIMEOUT_SECONDS = 10.0
# Other Ray resources of a node are not shown.
SHOWN_RESOURCES = ("CPU", "GPU")
_HEAD_RESOURCE = "node:__internal_head__"


@dataclass(frozen=True)
class NodeStatus:
    """One node.

    state: ALIVE or DEAD, from Ray.
    total, free: resources by name; empty for a dead node.
    started_here: whether `down` on this machine ends it.
    problem: why it is dead, if known.
    """

    name: str
    address: str
    state: str
    head: bool
    total: dict[str, float]
    free: dict[str, float]
    started_here: bool
    problem: str | None = None


class ListedJob(TypedDict):
    """A job in Ray's Jobs API. `start`: seconds since 1970."""

    id: str | None
    status: str | None
    entrypoint: str | None
    start: float


@dataclass(frozen=True)
class ClusterStatus:
    """A snapshot of a cluster.

    jobs: `id`, `status` and `entrypoint` of each, newest first; None if the Jobs API does not answer.
    problems: such as a node that died.
    """

    record: ClusterRecord
    nodes: list[NodeStatus]
    jobs: list[ListedJob] | None
    problems: list[str] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether there are no problems, such as a dead node."""
        return not self.problems

    def sum_of(self, which: str) -> dict[str, float]:
        """Sum of `total` or `free` over the living nodes."""
        sums: dict[str, float] = {}
        for node in self.nodes:
            for name, amount in getattr(node, which).items():
                sums[name] = sums.get(name, 0.0) + amount
        return sums


def status(record: ClusterRecord) -> ClusterStatus:
    """Query the head and the processes started on this machine.

    Raises:
        ShardyardError: the head does not answer.
    """
    reason = knock(*split_address(record.gcs))
    if reason is not None:
        dead = record.role == "head" and not any(processes.is_alive(node) for node in record.nodes[:1])
        what = "is dead" if dead else f"does not answer: {reason}"
        again = "up" if record.role == "head" else f"join {record.gcs}"
        raise ShardyardError(
            f"the head of the cluster at {record.gcs} {what}. `shardyard cluster down` cleans up here, then `shardyard "
            f"cluster {again}` starts again; runs continue from their checkpoints with `shardyard resume RUN`."
        )
    found = [_node(info, record) for info in _infos(record)]
    alive = {node.name for node in found if node.state == "ALIVE" and node.started_here}
    # The head notices the end of a node after some seconds; the local process shows it immediately.
    gone = [node.name for node in record.nodes if node.name not in alive or not processes.is_alive(node)]
    jobs = _jobs(record)
    problems = [f"{name} is dead; `shardyard cluster down`, then `up`, restarts it" for name in gone]
    problems += ["the Jobs API does not answer"] if jobs is None and record.dashboard else []
    return ClusterStatus(record, _newest([_corrected(node, gone) for node in found]), jobs, problems)


def registered(record: ClusterRecord) -> set[str]:
    """Names of the nodes of this record that are alive according to the head."""
    try:
        found = [_node(info, record) for info in _infos(record)]
    except ShardyardError:
        return set()
    return {node.name for node in found if node.started_here and node.state == "ALIVE"}


def answers(record: ClusterRecord) -> bool:
    """Whether the dashboard and Jobs API accept the token."""
    try:
        _get(record, "/api/version")
    except (OSError, ValueError):
        return False
    return True


def dashboard_url(record: ClusterRecord) -> str | None:
    """The URL of the dashboard and Jobs API according to the head; None if there is none."""
    _use_token(record)
    from ray.dashboard.utils import ray_address_to_api_server_url

    try:
        return str(ray_address_to_api_server_url(record.gcs))
    except Exception:  # noqa: BLE001  Ray raises what it finds; a node without a dashboard is still a node
        return None


def _infos(record: ClusterRecord) -> list[Any]:
    """Ray's description of each node, including dead ones.

    Raises:
        ShardyardError: the head refuses.
    """
    _use_token(record)
    from ray.autoscaler.v2.sdk import get_cluster_status

    try:
        answer = get_cluster_status(record.gcs)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ShardyardError(
            f"the head at {record.gcs} does not list its nodes: {first}. The token is in {record.token_path}."
        ) from error
    return [*answer.active_nodes, *answer.idle_nodes, *answer.failed_nodes]


def _use_token(record: ClusterRecord) -> None:
    """Set the token in the environment, from which Ray's client reads its settings once."""
    os.environ.pop("RAY_AUTH_TOKEN", None)
    os.environ.update({name: value for name, value in record.environment().items() if name != "RAY_ADDRESS"})


def _node(info: Any, record: ClusterRecord) -> NodeStatus:
    labels, total = info.labels or {}, info.total_resources()
    free = info.available_resources()
    head = _HEAD_RESOURCE in total
    return NodeStatus(
        name=labels.get(NAME_LABEL) or ("head" if head else str(info.node_id)[:8]),
        address=info.ip_address,
        state="DEAD" if info.node_status == "DEAD" else "ALIVE",
        head=head,
        total={name: total.get(name, 0.0) for name in SHOWN_RESOURCES} if total else {},
        free={name: free.get(name, 0.0) for name in SHOWN_RESOURCES} if total else {},
        started_here=labels.get(START_LABEL) == record.id,
        problem=info.failure_detail,
    )


def _newest(found: list[NodeStatus]) -> list[NodeStatus]:
    """The nodes, the head first, then by name; dead nodes that have been replaced are omitted."""
    alive = {(node.name, node.address) for node in found if node.state == "ALIVE"}
    kept = [node for node in found if node.state == "ALIVE" or (node.name, node.address) not in alive]
    return sorted(kept, key=lambda node: (not node.head, node.state, node.name, node.address))


def _corrected(node: NodeStatus, gone: list[str]) -> NodeStatus:
    if not node.started_here or node.name not in gone or node.state == "DEAD":
        return node
    return NodeStatus(node.name, node.address, "DEAD", node.head, {}, {}, True, "its processes have ended")


def _jobs(record: ClusterRecord) -> list[ListedJob] | None:
    if record.dashboard is None:
        return None
    try:
        jobs = _get(record, "/api/jobs/")
    except (OSError, ValueError):
        return None
    submitted = [job for job in jobs if job.get("type") == "SUBMISSION"]
    return [
        {
            "id": job.get("submission_id") or job.get("job_id"),
            "status": job.get("status"),
            "entrypoint": job.get("entrypoint"),
            "start": (job.get("start_time") or 0) / 1000,
        }
        for job in sorted(submitted, key=lambda job: -(job.get("start_time") or 0))
    ]


def _get(record: ClusterRecord, path: str) -> Any:
    """Get JSON from the dashboard.

    Raises:
        OSError: it does not answer, or refuses.
        ValueError: the answer is not JSON.
    """
    token = Path(record.token_path).read_text(encoding="utf-8").strip()
    request = urllib.request.Request(f"{record.dashboard}{path}", headers={"Authorization": f"Bearer {token}"})
    # A proxy would not reach this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=HTTP_TIMEOUT_SECONDS) as answer:
        return json.loads(answer.read())
