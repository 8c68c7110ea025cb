"""`shardyard cluster`: a Ray cluster on this machine or on several hosts, for submitting jobs."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from shardyard.cli.options import AsJson
from shardyard.cli.view import output
from shardyard.errors import EXIT_FAILED, UsageError
from shardyard.launch.local_cluster.nodes import exclusively, read_record
from shardyard.launch.local_cluster.token import ensure_token, new_token

if TYPE_CHECKING:
    from shardyard.launch.local_cluster.nodes import ClusterRecord
    from shardyard.launch.local_cluster.status import ClusterStatus, NodeStatus

cluster = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Start, inspect and stop a Ray cluster on this machine or on several hosts.",
)
Cpus = Annotated[
    int | None, typer.Option("--cpus", metavar="N", min=1, help="CPU cores per node. Default: all cores, divided.")
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", metavar="N", min=0, help="GPUs per node. Default: all GPUs, divided.")
]
Metrics = Annotated[bool, typer.Option("--metrics", help="Export Prometheus metrics, on ports without a token.")]


@cluster.command("up")
def up(
    num_nodes: Annotated[int, typer.Option("--nodes", min=1, help="Ray nodes on this machine.")] = 1,
    cpus: Cpus = None,
    gpus: Gpus = None,
    host: Annotated[
        str, typer.Option("--host", help="Address of this machine for nodes and clients; lets other hosts join.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Port of the head; 0: any free one.")] = 6379,
    dashboard_port: Annotated[
        int, typer.Option("--dashboard-port", min=0, max=65535, help="Port of dashboard and Jobs API; 0: any.")
    ] = 8265,
    metrics: Metrics = False,
    as_json: AsJson = False,
) -> None:
    """Start a cluster on this machine; it runs until `down`. A token protects it."""
    from shardyard.launch.local_cluster.start import Wishes
    from shardyard.launch.local_cluster.start import up as start

    wishes = Wishes(num_nodes, cpus, gpus, host, port, dashboard_port, metrics)
    record = start(wishes, output.note)
    if os.environ.get("RAY_AUTH_TOKEN"):
        output.note("RAY_AUTH_TOKEN is set, and Ray's clients would use it instead of this cluster's token: unset it.")
    if as_json:
        output.print_json(asdict(record))
    else:
        _show_quick_start(record)


@cluster.command("join")
def join(
    address: Annotated[str, typer.Argument(metavar="HEAD:PORT", help="Address that `up` printed on the head.")],
    cpus: Cpus = None,
    gpus: Gpus = None,
    host: Annotated[
        str | None,
        typer.Option(
            "--host", help="Address of this machine in the cluster. Default: the one that routes to the head."
        ),
    ] = None,
    metrics: Metrics = False,
    as_json: AsJson = False,
) -> None:
    """Make this machine a node of a cluster whose head runs elsewhere, until `down`. It needs the head's token."""
    from shardyard.launch.local_cluster.start import Wishes
    from shardyard.launch.local_cluster.start import join as start

    record = start(address, Wishes(1, cpus, gpus, host, metrics=metrics), output.note)
    if as_json:
        output.print_json(asdict(record))
    else:
        output.line(f"This machine is a node of the cluster at {record.gcs}, as {record.nodes[0].name}.")
        output.line("`shardyard cluster status` shows the cluster, `shardyard cluster down` leaves it.")


@cluster.command("status")
def status(as_json: AsJson = False) -> int:
    """Show nodes, free resources and jobs; exit code 1 if a process that was started here has died."""
    from shardyard.launch.local_cluster.status import status as ask

    found = ask(_record())
    if as_json:
        output.print_json(_status_values(found))
    else:
        _show_status(found)
    for problem in found.problems:
        output.print_error(f"{problem}.")
    return 0 if found.healthy else EXIT_FAILED


@cluster.command("down")
def down() -> None:
    """Stop what was started here, including running jobs; other Ray clusters on this machine keep running."""
    from shardyard.launch.local_cluster.start import down as end

    record = end()
    if record is None:
        output.line("No cluster is up.")
    elif record.role == "head":
        output.line(f"The cluster at {record.gcs} has ended.")
    else:
        output.line(f"This machine has left the cluster at {record.gcs}.")


@cluster.command("token")
def token(
    new: Annotated[bool, typer.Option("--new", help="Replace the token by a new one.")] = False,
) -> None:
    """Print the path of the token, creating one if needed; the token itself is never shown."""
    with exclusively():
        if new and read_record() is not None:
            raise UsageError("a cluster is up with the old token; `shardyard cluster down` first.")
        output.line(str(new_token() if new else ensure_token()))


def _record() -> ClusterRecord:

    record = read_record()
    if record is None:
        raise UsageError("no cluster is up on this machine; `shardyard cluster up` starts one.")
    return record


def _show_quick_start(record: ClusterRecord) -> None:
    names = f"{len(record.nodes)} node{'s' if len(record.nodes) != 1 else ''}"
    exports = " ".join(f"{name}={value}" for name, value in record.environment().items())
    output.line(f"Ray {record.ray} is up at {record.gcs} with {names}; it runs until `shardyard cluster down`.")
    output.line()
    output.line("  submit a job     shardyard submit gpt/quickstart")
    output.line("  look             shardyard cluster status")
    output.line(f"  dashboard        {record.dashboard} (asks for the token, which is in {record.token_path})")
    output.line("  end it           shardyard cluster down")
    if not record.on_loopback:
        output.line(f"  add a host       copy {record.token_path} to ~/.shardyard/token there, chmod 600, then")
        output.line(f"                   shardyard cluster join {record.gcs}")
    output.line()
    output.line("`shardyard launch RECIPE`, `ray status`, `ray job list` and other clients use it if this is set:")
    output.line(f"  export {exports}")


def _show_status(found: ClusterStatus) -> None:
    record = found.record
    alive = sum(node.state == "ALIVE" for node in found.nodes)
    output.line(
        f"Ray {record.ray} at {record.gcs}: {alive} of {len(found.nodes)} nodes alive, "
        f"{_amounts(found.sum_of('free'), found.sum_of('total'))} free; Python {record.python}, "
        f"Shardyard {record.shardyard}; dashboard {record.dashboard or 'unknown'}"
    )
    output.print_table(
        ("node", "address", "state", "free CPUs", "free GPUs", ""), [_cells(node) for node in found.nodes]
    )
    if found.jobs:
        output.line()
        rows = [(job["id"] or "-", job["status"] or "-", job["entrypoint"] or "-") for job in found.jobs]
        output.print_table(("job", "status", "entrypoint"), rows)
    elif found.jobs is not None:
        output.line("No jobs; `shardyard submit gpt/quickstart` submits one.")


def _cells(node: NodeStatus) -> tuple[str, ...]:
    free = [f"{node.free.get(name, 0):g}/{node.total.get(name, 0):g}" if node.total else "-" for name in ("CPU", "GPU")]
    return node.name, node.address, node.state, *free, node.problem or ""


def _amounts(free: dict[str, float], total: dict[str, float]) -> str:
    return " and ".join(f"{free.get(name, 0):g} of {total.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))


def _status_values(found: ClusterStatus) -> dict[str, object]:
    return {
        "healthy": found.healthy,
        "problems": found.problems,
        "gcs": found.record.gcs,
        "dashboard": found.record.dashboard,
        "versions": {
            "ray": found.record.ray,
            "python": found.record.python,
            "shardyard": found.record.shardyard,
        },
        "total": found.sum_of("total"),
        "free": found.sum_of("free"),
        "nodes": [asdict(node) for node in found.nodes],
        "jobs": found.jobs,
    }
